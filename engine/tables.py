"""Tables in Markdown, and how figures are written in them."""

from collections.abc import Sequence

FIGURES = {"Dice": ("dice", 3), "IoU": ("iou", 3), "HD95": ("hd95", 1)}  # column -> name and digits
RULE = """Dice and IoU are 1 where both masks are empty and 0 where one is; HD95, in mm (in pixels for pictures),
is the mean over the cases where neither is."""
INTERVALS = "In brackets: 95 % bootstrap intervals of the means."


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table without the columns in which no row has anything."""
    filled = [index for index in range(len(columns)) if any(row[index] != "" for row in rows)]
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(line[index]).replace("|", "/") for index in filled] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def with_interval(row: dict, name: str, digits: int, sign: str = "") -> str:
    """Return a mean with its interval, for example 0.812 (0.790 – 0.833); nothing where there is none."""
    if row.get(name) is None:
        return ""
    numbers = [row[name], *row.get(f"{name}_interval", ())]
    value, *limits = (f"{number:{sign}.{digits}f}" for number in numbers)
    return f"{value} ({' – '.join(limits)})" if limits else value
