"""The pages: their links lead somewhere, and the commands, options and names that they show exist."""

import ast
import importlib
import io
import re
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

FIRST, DOCUMENTATION = ROOT / "README.md", ROOT / "Resources" / "Documentation"
LONGEST_FIRST_PAGE = 160  # lines: two screens
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("Resources/**/*.md")])
READ_BY_PURPOSE = sorted({*DOCUMENTATION.glob("*.md"), ROOT / "CONTRIBUTING.md"})
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SCRIPTS = {"batch.sbatch": "segment", "training.sbatch": "train"}  # which hand their arguments on
CALL = re.compile(rf"-m engine\.(\w+)|\S*?({'|'.join(SCRIPTS)})")
PASSED_ON = {"comparison": "train"}  # what options go on to, that a command does not know
OTHERS = {  # options of other programs: accelerate, pip, Ray, Slurm, CMake, TensorBoard, Testing/viewer/memory.py
    *("--cpu", "--no-deps", "--address", "--gpus-per-node", "--no-kill", "--signal", "--build", "--target"),
    *("--logdir", "--pages"),
}
FILE = re.compile(r"(?<![\w/.~-])(?:engine|Testing|Resources|VLSMSegmenter|VLSMSegmenterLib)/[\w./-]*\w")
TO_BE_FILLED_IN = "NAME"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", text_of(page))


def lines_of_code(page: Path) -> list[str]:
    """Return the commands of a page, each with its continuations and without its comment."""
    blocks = (code for kind, code in FENCE.findall(text_of(page)) if kind == "sh")
    lines = (line for code in blocks for line in code.replace("\\\n", " ").splitlines())
    return [re.sub(r"(^|\s)#.*", "", line) for line in lines]


def spans_of(page: Path) -> list[str]:
    """Return what is set as code between words."""
    return [" ".join(span.split()) for span in SPAN.findall(prose(page))]


@cache
def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in HEADING.findall(prose(page)):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        found.append(anchor if anchor not in found else f"{anchor}-{found.count(anchor)}")
    return set(found)


def links_of(page: Path) -> list[tuple[Path, str]]:
    """Return where a page's links into the repository lead: files or folders, and anchors."""
    links = LINK.findall(SPAN.sub("", prose(page)))
    inside = (link.partition("#") for link in links if not re.match(r"[a-z]+:", link))
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in inside]


@cache
def help_of(command: str, *subcommand: str) -> str:
    """Return what a command of the engine says for --help."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), suppress(SystemExit):
        patch.setattr(sys, "argv", [command, *subcommand, "--help"])
        patch.setenv("COLUMNS", "1000")
        importlib.import_module(f"engine.{command}").main()
    return said.getvalue()


def subcommands_of(command: str) -> list[str]:
    return re.findall(r"^ {4}(\w+)", help_of(command), re.MULTILINE) if "COMMAND ..." in help_of(command) else []


def options_of(command: str, *words: str) -> set[str]:
    """Return the options that a command has, with those of its sub-command where the first word is one."""
    subcommand = [word for word in words[:1] if word in subcommands_of(command)]
    further = help_of(PASSED_ON[command]) if command in PASSED_ON else ""
    return {*OPTION.findall(help_of(command, *subcommand) + further)}


@cache
def all_options() -> set[str]:
    commands = [path.stem for path in ROOT.glob("engine/*.py") if "run(main)" in text_of(path)]
    assert len(commands) > 10
    calls = [(c,) for c in commands] + [(c, word) for c in commands for word in subcommands_of(c)]
    return set().union(*(options_of(*call) for call in calls))


@each_page
def test_every_link_leads_somewhere(page):
    missing = []
    for target, anchor in links_of(page):
        if not target.exists():
            missing.append(f"{target.relative_to(ROOT)} is not there")
        elif anchor and anchor not in anchors_of(target):
            missing.append(f"{target.relative_to(ROOT)} has no heading #{anchor}")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("listing", [FIRST, DOCUMENTATION / "README.md"], ids=["first page", "list"])
def test_every_page_is_on_the_lists(listing):
    linked = {target for target, _ in links_of(listing)} | {DOCUMENTATION / "README.md"}
    assert not {page.name for page in READ_BY_PURPOSE if page not in linked}


@pytest.mark.parametrize("page", READ_BY_PURPOSE, ids=lambda page: page.name)
def test_a_page_begins_with_whom_it_is_for(page):
    title, beginning = text_of(page).split("\n\n", 2)[:2]
    assert title.startswith("# ") and beginning.startswith("For whoever ")


def test_the_first_page_is_short():
    assert len(text_of(FIRST).splitlines()) <= LONGEST_FIRST_PAGE


@each_page
def test_every_command_that_is_named_exists(page):
    targets = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    wrong = []
    for code in (*lines_of_code(page), *spans_of(page)):
        for command in re.findall(r"(?:-m engine\.|^vlsm-)(\w+)", code):
            if command != "X" and not (ROOT / "engine" / f"{command}.py").is_file():
                wrong.append(f"engine.{command}")
        for target in re.findall(r"^make ([a-z][\w-]*)", code):
            if target not in targets:
                wrong.append(f"make {target}")
    assert not wrong, ", ".join(wrong)


@each_page
def test_every_file_that_is_named_is_there(page):
    names = {name for code in (*lines_of_code(page), *spans_of(page)) for name in FILE.findall(code)}
    places = ROOT, ROOT / "VLSMSegmenter"
    there = {name for name in names for place in places if TO_BE_FILLED_IN in name or (place / name).exists()}
    assert not names - there


@each_page
def test_every_option_that_is_shown_exists(page):
    wrong = []
    for line in lines_of_code(page):
        for call in CALL.finditer(line):
            command, rest = call[1] or SCRIPTS[call[2]], line[call.end() :]
            known = options_of(command, *rest.split())
            wrong += [f"{command} {option}" for option in OPTION.findall(rest) if option not in known]
    known = all_options() | OTHERS
    for span in spans_of(page):
        wrong += [option for option in OPTION.findall(span) if option not in known]
    assert not wrong, ", ".join(wrong)


@each_page
def test_python_that_is_shown_imports_what_is_there(page):
    """What it imports of the engine; `Testing/module/test_recipes.py` runs what is for Slicer."""
    for kind, code in FENCE.findall(text_of(page)):
        nodes = ast.walk(ast.parse(code)) if kind == "python" else ()
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "engine":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_every_room_is_on_the_page_that_tells_how_it_is_built():
    page = text_of(DOCUMENTATION / "architecture.md")
    rooms = [path.parent.relative_to(ROOT / "engine").as_posix() for path in ROOT.glob("engine/*/**/__init__.py")]
    assert len(rooms) > 10
    assert not [room for room in rooms if f"| `{room}/` |" not in page]
