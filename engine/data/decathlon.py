"""The layout of the Medical Segmentation Decathlon and of nnU-Net: `dataset.json`, `imagesTr/`, `labelsTr/`."""

from functools import partial
from pathlib import Path

from engine.data.annotations import held_out
from engine.data.descriptions import path_inside, read_json
from engine.data.volumes import Study
from engine.errors import UserError
from engine.imaging.labels import read_label_map

DESCRIPTION = "dataset.json"


def find_studies(folder: Path, split: str) -> tuple[list[Study], list[str]]:
    """Return the studies of a split, and the names of all labels.

    The labels are the Decathlon's (value: name) or nnU-Net's (name: value, or name: values of a region). The
    volumes are those that `dataset.json` lists, each entry perhaps with its "patient"; nnU-Net's does not, and
    then those in the folders.

    Raises:
        UserError: `dataset.json` is missing or not valid.
    """
    path = folder / DESCRIPTION
    description = read_json(path)
    try:
        values = _label_values(description["labels"])
        listed = description if "training" in description else _rows_of_folders(folder, description)
        rows = _rows_of_split(listed, split)
        return [_study(folder, row, values) for row in rows], [*values]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} lacks labels or volumes ({error}); mend it") from error


def _study(folder: Path, row: dict, values: dict[str, list[int]]) -> Study:
    image, labels = path_inside(folder, row["image"]), path_inside(folder, row["label"])
    patient = None if "patient" not in row else str(row["patient"])
    return Study(image.name, image, labels, partial(read_label_map, labels, values), patient)


def _rows_of_split(description: dict, split: str) -> list[dict]:
    """Volumes for validation are taken from the training list, spread evenly, when none are named."""
    training = description["training"]
    if split == "test":
        return description.get("test", [])
    if "validation" in description:
        return description["validation"] if split == "val" else training
    patients = [str(row.get("patient", row["image"])) for row in training]
    chosen = held_out(patients)
    return [row for row, patient in zip(training, patients, strict=True) if (patient in chosen) == (split == "val")]


def _rows_of_folders(folder: Path, description: dict) -> dict[str, list[dict]]:
    """nnU-Net's volumes: `imagesTr/NAME_0000.nii.gz` with `labelsTr/NAME.nii.gz`."""
    ending = description.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith(".") or "/" in ending:
        raise UserError(
            f"{folder / DESCRIPTION} names no volumes: it has neither 'training' (Decathlon) nor 'file_ending' "
            "(nnU-Net)"
        )
    channels = description.get("channel_names", {})
    if len(channels) > 1:
        names = ", ".join(map(str, channels.values()))
        raise UserError(f"{folder} has volumes of {len(channels)} channels ({names}); keep one, as NAME_0000")
    rows = {}
    for key, part in (("training", "Tr"), ("test", "Ts")):
        labels = sorted((folder / f"labels{part}").glob(f"*{ending}"))
        names = [path.name.removesuffix(ending) for path in labels]
        rows[key] = [
            {"image": f"images{part}/{name}_0000{ending}", "label": f"labels{part}/{name}{ending}"}
            for name in names
        ]
    return rows


def _label_values(labels: dict) -> dict[str, list[int]]:
    values = {}
    for key, value in labels.items():
        name, numbers = (value, [int(key)]) if key.isdigit() else (key, value)
        numbers = numbers if isinstance(numbers, list) else [int(numbers)]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the label {key[:40]} has no name")
        if numbers != [0]:
            values[name] = [int(number) for number in numbers]
    return values
