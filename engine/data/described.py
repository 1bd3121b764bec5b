"""Pictures with a description each, in the layout of LViT and MedCLIPSeg: `Train_Folder/`, `Val_Folder/` and
`Test_Folder/` with `img/` and `label/` (or `labelcol/`), and an Excel sheet a split, with the columns Image and
Description, in that folder, beside it, or in `Prompts_Folder/`.

`Train_text_10.xlsx` lists the images for training on a tenth of them; `Test_text_contradictory.xlsx` and its like
describe the same images otherwise: for measuring, not for training.
"""

from collections.abc import Iterator
from pathlib import Path

from engine.data.annotations import Annotation
from engine.data.descriptions import path_inside
from engine.data.pictures import PictureSet
from engine.errors import UserError

PARTS = {"train": "Train", "val": "Val", "test": "Test"}
MASK_FOLDERS = ("label", "labelcol")
MASK_MARK = "mask_"  # before the names of some sets' masks
SHEETS = "Prompts_Folder"
ORIGINAL = "original"  # the variant of the test sheet that is none
STRUCTURE = "(as described)"  # the layout has no class prompts


def is_layout(folder: Path) -> bool:
    return any((folder / f"{part}_Folder" / "img").is_dir() for part in PARTS.values())


def open_described(folder: Path, split: str, left_out: frozenset[Path] = frozenset()) -> PictureSet:
    """Open a split.

    Raises:
        UserError: its sheet is missing, is no Excel sheet, or lacks a column, a description, an image or a mask; or
            openpyxl is not installed.
    """
    place = _place(folder, split)
    masks = next((place / name for name in MASK_FOLDERS if (place / name).is_dir()), place / MASK_FOLDERS[0])
    if not place.is_dir():
        return PictureSet(folder.name, place / "img", masks, [], {})
    sheet = _sheet(folder, split)
    if sheet is None:
        raise UserError(f"{folder} has no {PARTS[split]}_text.xlsx, which describes what is in {place.name}")
    files = _by_stem(place / "img"), _by_stem(masks)
    others = {kind: dict(_read(path)) for kind, path in _variants(folder, split)}
    annotations = [
        _annotation(sheet, name, description, files, {kind: rows.get(name, "") for kind, rows in others.items()})
        for name, description in _read(sheet)
    ]
    wanted = [annotation for annotation in annotations if place / "img" / annotation.case not in left_out]
    return PictureSet(folder.name, place / "img", masks, wanted, {})


def images_of_fraction(folder: Path, split: str, percent: int) -> list[Path] | None:
    """Return the images that a data set itself lists for so many percent of a split; None where it lists none."""
    sheet = _sheet(folder, split, f"_{percent}") if is_layout(folder) else None
    if sheet is None:
        return None
    images = _place(folder, split) / "img"
    found = _by_stem(images)
    return [images / _file_of(sheet, name, found) for name, _ in _read(sheet)]


def _place(folder: Path, split: str) -> Path:
    return folder / f"{PARTS[split]}_Folder"


def _sheets(folder: Path, split: str) -> Iterator[Path]:
    """Yield the sheets of a split, those of the usual place first."""
    for place in (folder / SHEETS, _place(folder, split), folder):
        yield from sorted(place.glob(f"{PARTS[split]}_text*.xlsx"))


def _sheet(folder: Path, split: str, ending: str = "") -> Path | None:
    names = [f"{PARTS[split]}_text{ending}.xlsx", *([] if ending else [f"{PARTS[split]}_text_{ORIGINAL}.xlsx"])]
    return next((path for name in names for path in _sheets(folder, split) if path.name == name), None)


def _variants(folder: Path, split: str) -> Iterator[tuple[str, Path]]:
    """Yield the other wordings of a split by their kinds, such as "contradictory"."""
    for path in _sheets(folder, split):
        kind = path.stem.removeprefix(f"{PARTS[split]}_text").lstrip("_")
        if kind and kind != ORIGINAL and not kind.isdecimal():
            yield kind, path


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and descriptions of a sheet."""
    try:
        import openpyxl
    except ImportError:
        raise UserError(f"{path} is read by openpyxl, which is not here: pip install openpyxl") from None
    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
        rows = sheet.iter_rows(values_only=True)
        titles = [str(title).strip().lower() for title in next(rows, ())]
        rows = list(rows)
    except Exception as error:  # a file that is none makes its library raise many kinds
        reason = type(error).__name__
        raise UserError(f"{path} cannot be read as an Excel sheet ({reason}); get it again") from error
    if not {"image", "description"} <= set(titles):
        raise UserError(f"{path} has the columns {', '.join(titles)}; it must have Image and Description")
    image, description = titles.index("image"), titles.index("description")
    for number, row in enumerate(rows, start=2):
        name, text = (" ".join(str(row[column] or "").split()) for column in (image, description))
        if name and not text:
            raise UserError(f"{path} has no description for {name} in row {number}; mend it")
        if name:
            yield name, text


def _by_stem(folder: Path) -> dict[str, str]:
    return {path.stem: path.name for path in sorted(folder.glob("*")) if not path.name.startswith(".")}


def _file_of(sheet: Path, name: str, files: dict[str, str]) -> str:
    """Return the file that a row means: sheets name the image or its mask, some with another ending."""
    try:
        stem = path_inside(Path(), name).stem
    except ValueError as error:
        raise UserError(f"{sheet} names {error}; mend it") from error
    for candidate in (stem, stem.removeprefix(MASK_MARK), f"{MASK_MARK}{stem}"):
        if candidate in files:
            return files[candidate]
    raise UserError(f"{sheet} names {name}, which is not there; get the data set again")


def _annotation(
    sheet: Path, name: str, description: str, files: tuple[dict[str, str], dict[str, str]], others: dict[str, str]
) -> Annotation:
    image, mask = (_file_of(sheet, name, found) for found in files)
    variants = tuple((kind, wording) for kind, wording in others.items() if wording)
    return Annotation(image, image, mask, ((description,),), label=STRUCTURE, variants=variants)
