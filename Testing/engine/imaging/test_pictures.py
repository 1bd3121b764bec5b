"""Pictures as cameras, telephones and drawing programs write them; the second reader is Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import make_adapter, run_command
from PIL import Image, ImageOps

from engine import segment
from engine.errors import UserError
from engine.imaging.reading import read_frames, read_volume, unpacked_bytes
from engine.segmentation.segmenter import Segmenter

ORIENTATION = 0x0112
# what EXIF says that viewers do to the rows and columns of the file
SHOWN = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p.swapaxes(0, 1)[::-1],
}


def picture(colours: bool, deep: bool = False) -> np.ndarray:
    """A picture of 24 × 40 pixels without any symmetry, smooth enough for JPEG."""
    rows, columns = np.mgrid[:24, :40]
    grey = (rows * 3 + columns * 4).astype(np.uint16 if deep else np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1) if colours else grey * (200 if deep else 1)


def save(path, pixels, orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=tags, **({"quality": 98} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(
    ("suffix", "colours", "deep"),
    [
        (".jpg", True, False),
        (".jpg", False, False),
        (".png", True, False),
        (".png", False, True),
        (".tif", True, False),
        (".tif", False, False),
        (".tif", False, True),
    ],
)
def test_a_picture_is_read_as_it_is_shown(tmp_path, suffix, colours, deep, orientation):
    pixels = picture(colours, deep)
    path = save(tmp_path / f"a{suffix}", pixels, orientation)
    volume = read_volume(path)
    expected = SHOWN[orientation](pixels)
    assert volume.voxels.shape[1:] == expected.shape and volume.voxels.dtype == expected.dtype
    difference = np.abs(volume.voxels[0].astype(int) - expected).max()
    assert difference <= (12 if suffix == ".jpg" else 0)  # JPEG is not exact
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes()))))
    assert np.abs(shown.astype(int) - volume.voxels[0]).max() <= 6
    assert (volume.origin_mm, volume.direction) == ((0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_every_page_of_a_tiff_is_turned(tmp_path):
    pages = [picture(False), 255 - picture(False)]
    first, second = map(Image.fromarray, pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second], tiffinfo={ORIENTATION: 6})
    (volume,) = read_frames(tmp_path / "a.tif")
    assert np.array_equal(volume.voxels, [SHOWN[6](page) for page in pages])


def test_of_a_damaged_exif_block_no_notice_is_taken(tmp_path):
    path = save(tmp_path / "a.jpg", picture(False), 6)
    content = path.read_bytes()
    start = content.index(b"Exif\0\0") + 6
    path.write_bytes(content[:start] + b"XX" + content[start + 2 :])
    assert read_volume(path).shape == (1, 24, 40)


def test_what_is_written_lies_on_what_is_shown(tmp_path, tiny_base, monkeypatch, capsys):
    pixels = picture(True)
    pixels[4:12, 6:20] = (220, 200, 180)
    paths = {
        "turned": save(tmp_path / "turned.png", pixels, 6),
        "upright": save(tmp_path / "upright.png", np.ascontiguousarray(SHOWN[6](pixels)), 1),
    }
    adapter = make_adapter(tmp_path / "models" / "a", tiny_base, noise=0.3)
    segmenter = Segmenter(str(adapter), device="cpu", precision="fp32")
    segmenter.set_volume(read_volume(paths["upright"]))
    middle = float(np.median(segmenter.segment("brain").probability))
    options = ["--prompt", "brain", "-a", "a", "--threshold", middle, "--device", "cpu", "--precision", "fp32"]
    masks = {}
    for name, path in paths.items():
        out = tmp_path / f"{name}-mask.png"
        code, _, errors = run_command(monkeypatch, capsys, segment.main, path, "-o", out, *options)
        assert code == 0, errors
        masks[name] = np.asarray(Image.open(out))
    assert masks["turned"].shape == (40, 24) and 0 < (masks["turned"] > 0).mean() < 1
    assert np.array_equal(masks["turned"], masks["upright"])


def test_pictures_that_simpleitk_does_not_know_are_read(tmp_path):
    grey = picture(False)
    layers = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    Image.merge("LA", layers).save(tmp_path / "grey-and-alpha.png")
    Image.fromarray(grey > 90).save(tmp_path / "one-bit.bmp")
    assert np.array_equal(read_volume(tmp_path / "grey-and-alpha.png").voxels[0], grey)
    assert np.array_equal(read_volume(tmp_path / "one-bit.bmp").voxels[0], (grey > 90) * 255)
    assert unpacked_bytes(tmp_path / "grey-and-alpha.png") == grey.nbytes


def test_grey_with_alpha_that_is_cut_off_or_deep_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.merge("LA", [Image.fromarray(picture(False))] * 2).save(path)
    content = path.read_bytes()
    for kept in (len(content) // 2, len(content) - 14):
        path.write_bytes(content[:kept])
        with pytest.raises(UserError, match=r"a\.png is damaged"):
            read_volume(path)
    path.write_bytes(_as_grey_and_alpha(picture(False, deep=True)))
    with pytest.raises(UserError, match=r"a\.png is grey of 16 bits with transparency"):
        read_volume(path)


def _as_grey_and_alpha(grey: np.ndarray) -> bytes:
    """Return a PNG of 16 bits with transparency, which Pillow does not write."""
    height, width = grey.shape
    rows = np.stack([grey, np.full_like(grey, 65535)], axis=-1).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
