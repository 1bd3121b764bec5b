"""The plan of the house: which room stands on which, that imports run downwards only, and what no room may know."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

DOORS = "doors"  # what people call: `import engine`, and the commands as `python -m engine.X`
SHARED = "shared"  # what every room may use: errors, files, words, tables

# From the roof to the ground. A room imports from the floors below it; rooms of one floor do not know each other.
FLOORS = (
    {DOORS: "the commands' arguments, which load at once, and the names of `from engine import …`"},
    {"commands": "what the commands then do, with whatever it takes to load"},
    {"speed": "what `engine.benchmark` measures"},
    {"training": "from a data set to an adapter or a base", "server": "segmentation over HTTP"},
    {"evaluation": "figures against reference masks, and pictures of results"},
    {"segmentation": "from volumes and prompts to segments", "data": "labelled images, by layout"},
    {
        "models": "what lies on the disk: bases, adapter bundles, their cards",
        "pictures": "what people look at: outlines on slices, sheets",
        "imaging": "files to volumes and back",
        "client": "the server's other end",
    },
    {"nets/methods": "what is trained on a frozen net", "imaging/dicom": "DICOM files to volumes and back"},
    {"nets": "tensors in, tensors out", "imaging/volumes": "arrays with their place in the patient"},
    {SHARED: "errors, files, choices, prompts, words, tables"},
)
COMMANDS = {
    *("adapters", "benchmark", "comparison", "demo", "department", "evaluate", "pretrain", "results", "segment"),
    *("serve", "train", "view"),
}
# What a room must not load, at whatever floor: the nets know of no image file, images know of no net, the client
# runs in Slicer's own Python, and nothing that computes knows Slicer.
FORBIDDEN = {
    "nets": {"engine.imaging", "engine.models", "SimpleITK", "pydicom"},
    "imaging": {"engine.nets", "engine.models", "torch", "transformers"},
    "client": {"torch", "transformers", "SimpleITK", "pydicom"},
    "": {"slicer", "qt", "ctk", "vtk", "VLSMSegmenterLib"},
}


def modules(folder: str) -> dict[str, Path]:
    """Return the files of a package by the names under which they are imported."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to((ROOT / folder).parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, wherever it does: also late, or for type checks."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str, known: dict[str, Path]) -> str | None:
    """Return the module that an imported name lies in, where it is one of ours."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


ENGINE = modules("engine")


def room_of(module: str) -> str:
    path = ENGINE[module].relative_to(ROOT / "engine")
    if path.parent != Path():
        return path.parent.as_posix()
    return DOORS if path.stem in COMMANDS | {"__init__"} else SHARED


def arrows() -> Iterator[tuple[str, str]]:
    """Yield which module of the engine imports which."""
    for module, path in ENGINE.items():
        targets = {module_of(name, ENGINE) for name in imports(path)} - {None, module}
        yield from ((module, target) for target in targets)


def test_every_room_has_its_floor():
    planned = {room for floor in FLOORS for room in floor}
    assert {room_of(module) for module in ENGINE} == planned


def test_imports_run_downwards_only():
    level = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    upwards = [
        f"{module} imports {target}: {room_of(module)} must not know {room_of(target)}"
        for module, target in arrows()
        if room_of(module) != room_of(target) and level[room_of(target)] <= level[room_of(module)]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_module_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in ENGINE}
    for module, target in arrows():
        graph[module].add(target)
    assert len(list(TopologicalSorter(graph).static_order())) == len(ENGINE)  # raises CycleError where there is one


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_load_what_it_must_not_know(room):
    wrong = [
        f"{module} imports {name}"
        for module, path in ENGINE.items()
        if room_of(module).startswith(room)
        for name in imports(path)
        if any(name == banned or name.startswith(f"{banned}.") for banned in FORBIDDEN[room])
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_panel_knows_a_window():
    """The parts that the page in a browser shares with Slicer's panel know no Qt and nothing of the panel."""
    library = modules("VLSMSegmenter/VLSMSegmenterLib")
    viewer = modules("VLSMSegmenter/viewer")
    shared = {name: path for name, path in library.items() if ".shared" in name}
    assert len(shared) > 10 and len(viewer) > 5
    wrong = [
        f"{name} imports {imported}"
        for name, path in (shared | viewer).items()
        for imported in imports(path)
        if imported.startswith(("VLSMSegmenterLib.panel", "ctk", "torch"))
        or (imported.split(".")[0] == "qt" and name != "VLSMSegmenterLib.shared.worker")  # its timer, in Slicer
    ]
    assert not wrong, "\n".join(wrong)
