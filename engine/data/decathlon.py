"""The layout of the Medical Segmentation Decathlon and of nnU-Net: `dataset.json`, `imagesTr/`, `labelsTr/`."""

from functools import partial
from pathlib import Path

from engine.data.annotations import held_out
from engine.data.descriptions import path_inside, read_json
from engine.data.volumes import Study
from engine.errors import UserError
from engine.imaging.labels import is_ignore, read_label_map
from engine.imaging.reading import PICTURE_SUFFIXES, image_suffix

DESCRIPTION = "dataset.json"
BACKGROUND = "background"
CHANNELS = ("_0000", "_0001")  # what nnU-Net adds to the names of the first two


def find_studies(folder: Path, split: str) -> tuple[list[Study], list[str]]:
    """Return the studies of a split, and the names of all labels.

    The labels are the Decathlon's (value: name) or nnU-Net's (name: value, or name: values of a region); of voxels
    of the label "ignore", nothing is known. The volumes are those that `dataset.json` lists, each entry perhaps
    with its "patient"; where it lists none, as that of nnU-Net, those in the folders. Volumes without labels, such
    as the Decathlon's for testing, are left out.

    "labelled", in an entry or for all of them, names structures that are absent from a label map without a voxel of
    them; otherwise such a map says nothing of them.

    Raises:
        UserError: `dataset.json` is missing or not valid, or volumes have several channels.
    """
    path = folder / DESCRIPTION
    description = read_json(path)
    try:
        values = _label_values(description["labels"])
        rows = _rows_of_split(_listed(folder, description), split)
        labelled = description.get("labelled", [])
        studies = [_study(folder, {"labelled": labelled} | row, values) for row in rows]
        return studies, [name for name in values if not is_ignore(name)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} lacks labels or volumes ({error}); mend it") from error


def _study(folder: Path, row: dict, values: dict[str, list[int]]) -> Study:
    image, labels = _image(folder, row["image"]), path_inside(folder, row["label"])
    patient = None if "patient" not in row else str(row["patient"])
    labelled = row["labelled"]
    unknown = [str(name) for name in labelled if name not in values]
    if isinstance(labelled, str) or unknown:
        raise ValueError(f"'labelled' is no list of labels: {', '.join(unknown) or labelled}")
    return Study(
        image.name, image, labels, partial(read_label_map, labels, values, labelled=frozenset(labelled)), patient
    )


def _image(folder: Path, name: object) -> Path:
    """Return the file of a listed volume, which nnU-Net's first version lists without the number of its channel.

    Raises:
        UserError: there are several channels.
    """
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if isinstance(name, list):
        raise UserError(f"{folder / DESCRIPTION} lists {len(name)} channels for a volume; keep one")
    path = path_inside(folder, name)
    ending = image_suffix(path) or path.suffix
    stem = path.name.removesuffix(ending)
    numbered = [path.with_name(f"{stem}{channel}{ending}") for channel in CHANNELS]
    if path.exists() or not numbered[0].exists():
        return path
    if numbered[1].exists():
        raise UserError(f"{numbered[1]} is a second channel of {stem}; keep one, as {numbered[0].name}")
    return numbered[0]


def _listed(folder: Path, description: dict) -> dict[str, list]:
    """Return the volumes for training and testing, and for validation where they are named."""
    if "training" in description:
        return description
    if isinstance(description.get("dataset"), dict):  # of nnU-Net's second version, for files in other places
        rows = description["dataset"].values()
        return {"training": [{"image": row["images"], "label": row["label"]} for row in rows]}
    return _rows_of_folders(folder, description)


def _rows_of_split(listed: dict[str, list], split: str) -> list[dict]:
    """Volumes for validation are taken from the training list, spread evenly, when none are named."""
    training = listed["training"]
    if split == "test":
        return _labelled_rows(listed.get("test", []))
    validation = listed.get("validation")
    if validation == [] or _labelled_rows(validation or []):
        return _labelled_rows(validation) if split == "val" else training
    patients = [str(row.get("patient", row["image"])) for row in training]
    chosen = held_out(patients)
    return [row for row, patient in zip(training, patients, strict=True) if (patient in chosen) == (split == "val")]


def _labelled_rows(rows: list) -> list[dict]:
    return [row for row in rows if not (isinstance(row, str) or (isinstance(row, dict) and "label" not in row))]


def _rows_of_folders(folder: Path, description: dict) -> dict[str, list]:
    """nnU-Net's volumes: `imagesTr/NAME_0000.nii.gz` with `labelsTr/NAME.nii.gz`; the colours of a picture are in
    one file."""
    ending = description.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith(".") or "/" in ending:
        raise UserError(
            f"{folder / DESCRIPTION} names no volumes: it has neither 'training' (Decathlon) nor 'file_ending' "
            "(nnU-Net)"
        )
    channels = description.get("channel_names", {})
    rows: dict[str, list] = {}
    for key, part in (("training", "Tr"), ("test", "Ts")):
        labels = sorted((folder / f"labels{part}").glob(f"[!.]*{ending}"))
        stems = [path.name.removesuffix(ending) for path in labels]
        images = [[f"images{part}/{stem}{channel}{ending}" for channel in CHANNELS] for stem in stems]
        several = any((folder / second).exists() for _, second in images)
        if several or (len(channels) > 1 and ending.lower() not in PICTURE_SUFFIXES):
            names = ", ".join(map(str, channels.values()))
            raise UserError(
                f"{folder} has volumes of {max(2, len(channels))} channels ({names}); keep one, as "
                f"NAME{CHANNELS[0]}{ending}"
            )
        rows[key] = [
            {"image": first, "label": f"labels{part}/{stem}{ending}"}
            for stem, (first, _) in zip(stems, images, strict=True)
        ]
    return rows


def _label_values(labels: dict) -> dict[str, list[int]]:
    values = {}
    for key, value in labels.items():
        name, numbers = (value, [int(key)]) if key.isdigit() else (key, value)
        numbers = numbers if isinstance(numbers, list) else [int(numbers)]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the label {key[:40]} has no name")
        if name.lower() == BACKGROUND and numbers != [0]:
            raise ValueError(f"'{name}' is {numbers[0] if numbers else 'nothing'}; it has to be 0")
        if numbers != [0]:
            values[name] = [int(number) for number in numbers]
    return values
