"""Turn the labelled volumes of the shared data into Decathlon folders whose label names are prompts.

    python Resources/Models/prepare_volumes.py SHARED_DATA data

Writes `head_t1` (one whole head and the same head without its skull, with structures merged from the AAL
regions) and `torso_ct` (two CT volumes). Masks that overlap become nnU-Net regions.
"""

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

AAL_STRUCTURES = {
    "cerebellum": ("Cerebelum", "Vermis"),
    "hippocampus": ("Hippocampus",),
    "thalamus": ("Thalamus",),
    "caudate nucleus": ("Caudate",),
    "putamen": ("Putamen",),
    "amygdala": ("Amygdala",),
    "insula": ("Insula",),
    "frontal lobe": ("Precentral", "Frontal", "Rolandic", "Supp_Motor", "Olfactory", "Rectus", "Paracentral"),
    "parietal lobe": ("Postcentral", "Parietal", "SupraMarginal", "Angular", "Precuneus"),
    "temporal lobe": ("Heschl", "Temporal", "Fusiform", "ParaHippocampal"),
    "occipital lobe": ("Calcarine", "Cuneus", "Lingual", "Occipital"),
    "cingulate gyrus": ("Cingulum",),
}
CT_STRUCTURES = {
    "liver": ("liver",),
    "spleen": ("spleen",),
    "kidney": ("kidney right", "kidney left"),
    "stomach": ("stomach",),
    "colon": ("colon",),
    "aorta": ("aorta",),
    "spine": ("vertebrae", "sacrum"),
    "gluteal muscles": ("gluteus",),
    "hip bone": ("hip",),
    "urinary bladder": ("urinary bladder",),
}


def write_region_labels(folder: Path, volumes: list[tuple[str, sitk.Image, dict[str, np.ndarray]]]) -> None:
    """Write volumes with masks that may overlap as a Decathlon folder, all for training.

    Every combination of masks becomes one label value, and each name lists its values (nnU-Net's regions).

    Args:
        volumes: (name, image, {prompt: bool mask in the image's array order}).
    """
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    prompts = sorted({prompt for _, _, masks in volumes for prompt in masks})
    codes: dict[tuple[bool, ...], int] = {(False,) * len(prompts): 0}
    for name, image, masks in volumes:
        size = sitk.GetArrayViewFromImage(image).shape
        flags = np.stack([masks.get(prompt, np.zeros(size, bool)) for prompt in prompts], axis=-1)
        unique, inverse = np.unique(flags.reshape(-1, len(prompts)), axis=0, return_inverse=True)
        values = [codes.setdefault(tuple(row.tolist()), len(codes)) for row in unique]
        labels = sitk.GetImageFromArray(np.array(values, np.uint16)[inverse.ravel()].reshape(size))
        labels.CopyInformation(image)
        sitk.WriteImage(image, folder / "imagesTr" / f"{name}.nii.gz")
        sitk.WriteImage(labels, folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "name": folder.name,
        "labels": {p: [code for row, code in codes.items() if row[i]] for i, p in enumerate(prompts)},
        "training": [
            {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name, _, _ in volumes
        ],
        "validation": [],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def head(folder: Path) -> list[tuple[str, sitk.Image, dict[str, np.ndarray]]]:
    """Colin27 with and without its skull; grey and white matter come from the intensities of the brain."""
    names = json.loads((folder / "dataset.json").read_text())["labels"]
    regions = sitk.GetArrayFromImage(sitk.ReadImage(folder / "aal.nii.gz"))
    whole, brain = (sitk.ReadImage(folder / name) for name in ("ch2.nii.gz", "ch2bet.nii.gz"))
    masks = {name: np.isin(regions, values) for name, values in _merge(names, AAL_STRUCTURES).items()}
    inside = sitk.GetArrayFromImage(brain) > 0
    tissue = _three_tissues(brain, inside)
    masks |= {"brain": inside, "grey matter": tissue == 1, "white matter": tissue == 2}
    return [("colin27_head", whole, masks), ("colin27_brain", brain, masks)]


def torso(folder: Path) -> list[tuple[str, sitk.Image, dict[str, np.ndarray]]]:
    """The two CT volumes that have labels (model output, not expert drawings)."""
    names = json.loads((folder / "labels.json").read_text())["labels"]["ct"]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "jpeg2000_dicom_series")))
    images = {
        "torso_small": (sitk.ReadImage(folder / "example_ct_sm.nii.gz"), "example_seg.nii.gz"),
        "torso_series": (reader.Execute(), "example_seg_dicom.nii.gz"),
    }
    volumes = []
    for name, (image, labels) in images.items():
        regions = sitk.GetArrayFromImage(
            sitk.Resample(sitk.ReadImage(folder / labels), image, sitk.Transform(), sitk.sitkNearestNeighbor)
        )
        merged = _merge(names, CT_STRUCTURES)
        volumes.append((name, image, {label: np.isin(regions, values) for label, values in merged.items()}))
    return volumes


def _three_tissues(brain: sitk.Image, inside: np.ndarray) -> np.ndarray:
    """Return 0 fluid, 1 grey, 2 white by Otsu's thresholds of the intensities inside the brain; -1 outside."""
    voxels = sitk.GetArrayFromImage(sitk.Median(brain))
    low, high = _otsu_thresholds(voxels[inside])
    return np.where(inside, (voxels > low).astype(int) + (voxels > high), -1)


def _otsu_thresholds(values: np.ndarray) -> tuple[float, float]:
    otsu = sitk.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(2)
    otsu.Execute(sitk.GetImageFromArray(values[None].astype(np.float32)))
    return otsu.GetThresholds()


def _merge(names: dict[str, str], structures: dict[str, tuple[str, ...]]) -> dict[str, list[int]]:
    return {
        structure: [int(value) for value, name in names.items() if name.startswith(starts)]
        for structure, starts in structures.items()
    }


def main(shared: Path, output: Path) -> None:
    write_region_labels(output / "head_t1", head(shared / "brain_t1_mr"))
    write_region_labels(output / "torso_ct", torso(shared / "abdomen_ct"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
