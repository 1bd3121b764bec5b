"""The data sets of the Decathlon and of nnU-Net as they are published, and as computers leave them behind."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball
from PIL import Image

from engine.data import open_data_set, open_splits
from engine.errors import UserError


def described(folder, **changes):
    path = folder / "dataset.json"
    description = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def opened(folder):
    """Return how many cases each split has, once all of their masks were compared with the label maps."""
    sets = open_splits(folder, ("axial",))
    for data_set in sets.values():
        for case in data_set.cases():
            number = case.name.split(".")[0].removesuffix("_0000")
            labels = sitk.GetArrayFromImage(sitk.ReadImage(folder / "labelsTr" / f"{number}.nii.gz"))
            assert np.array_equal(case.truths[0].mask, labels == 1) and np.array_equal(
                case.truths[1].mask, labels == 2
            )
    return [data_set.case_count for data_set in sets.values()]


def test_the_decathlon_lists_names_for_testing(volumes):
    described(volumes, test=["./imagesTs/11.nii.gz", "./imagesTs/12.nii.gz"], numTest=2, modality={"0": "MRI"})
    assert opened(volumes) == [9, 1, 0]


def test_what_is_listed_for_testing_with_labels_is_tested(volumes):
    rows = json.loads((volumes / "dataset.json").read_text())["training"]
    described(
        volumes, training=rows[:8], test=[*rows[8:], {"image": "./imagesTs/11.nii.gz"}, "./imagesTs/12.nii.gz"]
    )
    assert opened(volumes) == [7, 1, 2]


def number_channels(folder, *channels):
    for path in sorted((folder / "imagesTr").glob("*.nii.gz")):
        for channel in channels[1:]:
            path.with_name(path.name.replace(".nii.gz", f"{channel}.nii.gz")).write_bytes(path.read_bytes())
        path.rename(path.with_name(path.name.replace(".nii.gz", f"{channels[0]}.nii.gz")))


def test_nnunets_first_version_lists_names_without_the_channel(volumes):
    described(volumes, test=[])
    number_channels(volumes, "_0000")
    assert opened(volumes) == [9, 1, 0]
    assert "3_0000.nii.gz" in open_data_set(volumes, "train").paths


def test_several_channels_are_refused_however_they_are_listed(volumes):
    number_channels(volumes, "_0000", "_0001")
    with pytest.raises(UserError, match=r"0_0001\.nii\.gz is a second channel of 0; keep one, as 0_0000\.nii\.gz"):
        open_data_set(volumes, "train")
    described(volumes, training=None, file_ending=".nii.gz", channel_names={"0": "T1"})
    with pytest.raises(UserError, match=r"has volumes of 2 channels \(T1\); keep one, as NAME_0000\.nii\.gz"):
        open_data_set(volumes, "train")
    rows = [{"image": ["imagesTr/0_0000.nii.gz", "imagesTr/0_0001.nii.gz"], "label": "labelsTr/0.nii.gz"}]
    described(volumes, training=rows)
    with pytest.raises(UserError, match=r"lists 2 channels for a volume; keep one"):
        open_data_set(volumes, "train")


def test_the_decathlons_channels_in_one_file_are_refused_in_words(volumes):
    path = volumes / "imagesTr" / "0.nii.gz"
    volume = sitk.ReadImage(path)
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), path)
    with pytest.raises(UserError, match=r"0\.nii\.gz holds 2 volumes, such as channels or time points; keep one"):
        _ = open_data_set(volumes, "train").annotations


def test_nnunets_list_of_files_is_read(volumes):
    rows = {f"case_{n}": {"images": [f"imagesTr/{n}.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in range(10)}
    described(volumes, training=None, dataset=rows, file_ending=".nii.gz", channel_names={"0": "T1"})
    assert opened(volumes) == [9, 1, 0]


def test_files_that_macos_leaves_behind_are_no_volumes(volumes):
    number_channels(volumes, "_0000")
    described(volumes, training=None, file_ending=".nii.gz", channel_names={"0": "T1"})
    for name in ("imagesTr/._0_0000.nii.gz", "labelsTr/._0.nii.gz", "labelsTr/.DS_Store"):
        (volumes / name).write_bytes(bytes(176))
    assert opened(volumes) == [9, 1, 0]


@pytest.mark.parametrize("kind", ["grey", "palette", "one bit", "grey as RGB"])
@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures_in_colour_are_one_file_with_one_label_map(tmp_path, ending, kind):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    disc = ball((1, 40, 50), (0, 20, 20), 8)[0]
    for number in range(4):
        picture = np.full((40, 50, 3), 150, np.uint8)
        picture[disc] = (250, 20 * number, 0)
        Image.fromarray(picture).save(tmp_path / "imagesTr" / f"{number}_0000{ending}", dpi=(300, 300))
        labels = Image.fromarray(disc.astype(np.uint8))
        if kind == "palette":
            labels = Image.fromarray(disc.astype(np.uint8), mode="P")
            labels.putpalette([255, 255, 255, 0, 0, 90])
        elif kind == "one bit":
            labels = Image.fromarray(disc)
        elif kind == "grey as RGB":
            labels = labels.convert("RGB")
        labels.save(tmp_path / "labelsTr" / f"{number}{ending}")
    channels = {"0": "R", "1": "G", "2": "B"}
    description = {"channel_names": channels, "labels": {"background": 0, "polyp": 1}, "file_ending": ending}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    data_set = open_data_set(tmp_path, "train")
    assert data_set.case_count == 4 and len(data_set.annotations) == 4
    for annotation in data_set.annotations:
        image = data_set.image(annotation)
        assert image.shape == (40, 50, 3) and tuple(image[20, 20]) == (250, 20 * int(annotation.case[0]), 0)
        assert annotation.present and np.array_equal(data_set.mask(annotation), disc)


def test_a_background_that_is_not_0_is_refused(volumes):
    described(volumes, labels={"0": "ball", "1": "Background"})
    with pytest.raises(UserError, match=r"'Background' is 1; it has to be 0"):
        open_data_set(volumes, "train")
