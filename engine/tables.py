"""Tables in Markdown."""

from collections.abc import Sequence


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table without the columns in which no row has anything."""
    filled = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(line[index]).replace("|", "/") for index in filled] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
