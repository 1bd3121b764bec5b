"""Masks as drawing programs save them: what says where the structure is, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from engine.data import open_data_set
from engine.errors import UserError

TRUTH = np.zeros((40, 50), bool)
TRUTH[4:19, 6:31] = True
ONES = TRUTH.astype(np.uint8)
EMPTY, FULL = ONES * 0, ONES * 0 + 255


def palette(indices, *colours):
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def layers(*channels):
    return Image.fromarray(np.dstack(channels))


WITH_VOID = np.where(TRUTH, 1, np.eye(40, 50, dtype=int) * 2)
RIGHT = {
    "dark palette": palette(ONES, (0, 0, 0), (0, 0, 90)),
    "palette of one colour": palette(ONES, (0, 0, 0), (0, 0, 0)),
    "the palette of VOC": palette(ONES, (0, 0, 0), (128, 0, 0)),
    "black and white by a palette": palette(ONES, (0, 0, 0), (255, 255, 255)),
    "a grey picture by a palette": palette(ONES * 2 + 1, (9, 9, 9), (0, 0, 0), (5, 5, 5), (255, 255, 255)),
    "one bit": Image.fromarray(TRUTH),
    "opacity of white": layers(FULL, FULL, FULL, ONES * 255),
    "opacity of black": layers(EMPTY, EMPTY, EMPTY, ONES * 255),
    "red on nothing": layers(ONES * 255, EMPTY, EMPTY, ONES * 255),
    "colours that are opaque": layers(ONES * 255, ONES * 255, ONES * 255, FULL),
    "colours and opacity agree": layers(*[ONES * 255] * 4),
    "grey that is opaque": Image.merge("LA", [Image.fromarray(ONES * 255), Image.fromarray(FULL)]),
    "opacity of grey": Image.merge("LA", [Image.fromarray(FULL), Image.fromarray(ONES * 255)]),
}
REFUSED = {
    "white is 0": (palette(ONES, (255, 255, 255), (0, 0, 0)), "shows 0, which is no structure, brighter than 1"),
    "a coloured palette upside down": (palette(1 - ONES, (255, 0, 0), (0, 0, 0)), "brighter than 1"),
    "three classes": (palette(WITH_VOID, (0, 0, 0), (90, 0, 0), (0, 90, 0)), "holds 3 numbers, up to 2"),
    "opacity against colours": (layers(*[ONES * 255] * 3, np.roll(ONES, 5, 0) * 200 + 55), "another by its transp"),
    "black on nothing": (layers(*[255 - ONES * 255] * 3, ONES * 255), "another by its transparency"),
    "a dark colour": (layers(EMPTY, EMPTY, ONES * 90), "is a coloured picture"),
    "the darkest colour": (layers(EMPTY, EMPTY, ONES * 3), "holds numbers up to 3"),
    "two bright values": (Image.fromarray(ONES * 100 + 150), "holds numbers from 150 to 250"),
}


def mask_of(pictures, picture, suffix):
    name = f"mask{suffix}"
    try:
        picture.save(pictures / "masks" / name)
    except OSError:
        pytest.skip("there is no such file")
    row = json.loads((pictures / "anns" / "train.json").read_text())[0]
    (pictures / "anns" / "train.json").write_text(json.dumps([row | {"mask_name": name}]))
    data_set = open_data_set(pictures, "train")
    mask = data_set.mask(data_set.annotations[0])
    case = data_set.case(data_set.annotations[0].case)
    assert np.array_equal(case.truths[0].mask[0], mask)
    return mask


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", RIGHT)
def test_odd_masks_are_read(pictures, kind, suffix):
    assert np.array_equal(mask_of(pictures, RIGHT[kind], suffix), TRUTH)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_be_taken_in_two_ways_is_refused(pictures, kind, suffix):
    picture, message = REFUSED[kind]
    with pytest.raises(UserError, match=message) as refusal:
        mask_of(pictures, picture, suffix)
    assert f"mask{suffix}" in str(refusal.value)


def test_a_dark_mask_of_jpeg_is_refused(pictures):
    with pytest.raises(UserError, match=r"mask\.jpg holds numbers up to 10\d; a mask holds 0 and 255"):
        mask_of(pictures, Image.fromarray(ONES * 90), ".jpg")


@pytest.mark.parametrize("orientation", [3, 6])
def test_image_and_mask_are_turned_alike(pictures, orientation):
    """What was drawn on the picture as it is shown lies there, also where the mask itself says how it is shown."""
    image = Image.fromarray(ONES * 150 + 50)
    stored = image.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation])
    tags = Image.Exif()
    tags[0x0112] = orientation
    row = json.loads((pictures / "anns" / "train.json").read_text())[0]
    stored.save(pictures / "images" / row["img_name"], exif=tags)
    turned = Image.fromarray(np.array(stored) > 100).convert("P")
    for number, mask in enumerate((Image.fromarray(ONES * 255), turned)):
        mask.save(pictures / "masks" / f"{number}.png", **({"exif": tags} if mask is turned else {}))
        (pictures / "anns" / "train.json").write_text(json.dumps([row | {"mask_name": f"{number}.png"}]))
        data_set = open_data_set(pictures, "train")
        (annotation,) = data_set.annotations
        assert np.array_equal(data_set.mask(annotation), TRUTH)
        assert np.array_equal(data_set.image(annotation) > 100, TRUTH)


def test_a_mask_of_the_unturned_picture_is_refused_by_its_size(pictures):
    tags = Image.Exif()
    tags[0x0112] = 6
    row = json.loads((pictures / "anns" / "train.json").read_text())[0]
    Image.fromarray(ONES * 150).save(pictures / "images" / row["img_name"], exif=tags)
    Image.fromarray(ONES * 255).save(pictures / "masks" / row["mask_name"])
    data_set = open_data_set(pictures, "train")
    with pytest.raises(UserError, match=r"50 × 40 pixels and its image 0\.png 40 × 50, as EXIF turns it"):
        data_set.mask(data_set.annotations[0])
