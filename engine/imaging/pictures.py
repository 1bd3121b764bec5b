"""What Pillow knows of pictures and SimpleITK does not: which way up they are shown, palettes, transparency."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from engine.errors import UserError
from engine.files import Bounded

DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error)  # what Pillow raises of it
KINDS = ("PNG", "JPEG", "TIFF", "BMP")
PLAIN_KINDS = (("PNG", "LA"), ("BMP", "1"), ("BMP", "P"))  # which SimpleITK cannot read, at least not all of them
GREY_MODES = ("L", "I;16", "I;16B", "I", "F")
ORIENTATION = 0x0112  # the tag of EXIF and of TIFF
PNG_KIND = 24  # where a PNG has the bits of a sample and the kind of its colours
BMP_BITS = 28
DEEP_GREY_AND_ALPHA = b"\x10\x04"
# Orientation -> whether rows become columns, and then what is mirrored: left and right, top and bottom.
TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image | None]:
    """Yield a picture, None where Pillow does not know its kind; whether it is whole is proved elsewhere."""
    with warnings.catch_warnings(), Bounded(path) as file:
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(file, formats=KINDS)
        except (Image.UnidentifiedImageError, Image.DecompressionBombError):
            picture = None
        yield picture


def upright(image: sitk.Image, path: Path) -> sitk.Image:
    """Return the picture of a file as viewers show it: turned and mirrored as its EXIF orientation says."""
    with _opened(path) as picture:
        if picture is None:
            return image
        turned, *mirrored = _turn(picture)
        if not (turned or any(mirrored)):
            return image
        if picture.format == "TIFF":  # of which SimpleITK mirrors some kinds, and turns none
            try:
                return _pages(picture, path)
            except DAMAGE as error:
                raise UserError(f"{path} is damaged ({error}); get it again") from error
    dimension = image.GetDimension()
    if turned:
        image = sitk.PermuteAxes(image, (1, 0, 2)[:dimension])
    image = sitk.Flip(image, (*mirrored, False)[:dimension])
    image.SetOrigin([0.0] * dimension)
    image.SetDirection(np.eye(dimension).ravel())
    return image


def _turn(picture: Image.Image) -> tuple[bool, bool, bool]:
    with suppress(*DAMAGE):
        return TURNS[picture.getexif().get(ORIENTATION)]
    return False, False, False  # of a damaged EXIF block, viewers take no notice either


def _pages(picture: Image.Image, path: Path) -> sitk.Image:
    """Return the pages of a TIFF as Pillow turns them: grey, or 8-bit RGB."""
    pages = []
    for number in range(picture.n_frames):
        picture.seek(number)
        grey = picture.mode in GREY_MODES
        pages.append(
            np.asarray(picture if grey else picture.convert("L" if picture.mode in ("1", "LA") else "RGB"))
        )
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise UserError(f"{path} has pages of several sizes or kinds; save them one by one")
    pixels = pages[0] if len(pages) == 1 else np.stack(pages)
    return sitk.GetImageFromArray(pixels, isVector=pages[0].ndim == 3)


def _shown(picture: Image.Image) -> np.ndarray:
    """Return the numbers of a picture as it is shown; Pillow itself turns a TIFF."""
    turned, across, down = (False,) * 3 if picture.format == "TIFF" else _turn(picture)
    numbers = np.asarray(picture)
    numbers = numbers.swapaxes(0, 1) if turned else numbers
    return numbers[:: -1 if down else 1, :: -1 if across else 1]


def read_plain(path: Path) -> sitk.Image | None:
    """Return a picture of a kind that only Pillow reads: grey with transparency, which is dropped, or a BMP of 1 or
    4 bits; None for any other.

    Raises:
        UserError: it is damaged, or has 16 bits, of which Pillow would drop 8.
    """
    with _opened(path) as picture:
        if picture is not None and picture.format == "PNG" and _bytes_at(path, PNG_KIND) == DEEP_GREY_AND_ALPHA:
            raise UserError(f"{path} is grey of 16 bits with transparency; save it without transparency")
        if picture is None or _kind(picture, path) not in PLAIN_KINDS:
            return None
        _check_sums(path)
        colours = picture.convert("RGB" if picture.mode == "P" else "L")
        return sitk.GetImageFromArray(np.asarray(colours), isVector=colours.mode == "RGB")


def _kind(picture: Image.Image, path: Path) -> tuple[str | None, str]:
    """Return format and mode: "L" for a BMP of two greys and more bits, which Pillow takes for one of one bit."""
    one_bit = picture.format != "BMP" or _bytes_at(path, BMP_BITS) == b"\x01\0"
    return picture.format, "L" if picture.mode == "1" and not one_bit else picture.mode


def _check_sums(path: Path) -> None:
    with _opened(path) as picture:
        try:
            picture.verify()
        except DAMAGE as error:
            raise UserError(f"{path} is damaged ({error}); get it again") from error


def _bytes_at(path: Path, place: int) -> bytes:
    with path.open("rb") as file:
        return file.read(place + 2)[place:]


def read_indices(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the numbers that a picture with a palette or of one bit holds, (height, width) uint8, as it is shown,
    and the colour of each, (256, 3) uint8; None for any other picture."""
    with _opened(path) as picture:
        if picture is None or _kind(picture, path)[1] not in ("1", "P"):
            return None
        palette = np.zeros((256, 3), np.uint8)
        colours = np.reshape(picture.getpalette("RGB") or [0, 0, 0, 255, 255, 255], (-1, 3))
        palette[: len(colours)] = colours
        return _shown(picture).astype(np.uint8), palette


def read_layers(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the colours of a picture with transparency, (height, width) or (height, width, 3) uint8, as it is
    shown, and its opacity, (height, width) uint8; None for one without. The file has to be whole."""
    with _opened(path) as picture:
        if picture is not None and (picture.format, picture.mode) == ("BMP", "RGB"):
            layers = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # of 32 bits, Pillow drops 8
        elif picture is not None and picture.mode in ("LA", "RGBA"):
            layers = _shown(picture)
        else:
            return None
        if layers.shape[-1] == 3:
            return None
        return (layers[..., 0] if layers.shape[-1] == 2 else layers[..., :3]), layers[..., -1]
