"""Files as the world makes them: read as independent readers read them, or refused in words, and never half."""

import gzip
import itertools
import struct
import warnings
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from engine.errors import UserError
from engine.imaging.labels import read_label_map
from engine.imaging.reading import find_studies, names_other_files, read_frames, read_volume, unpacked_bytes
from engine.imaging.volumes.intensity import intensity_range
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume, check_geometry
from engine.imaging.writing import write_segments, write_volume

SHAPE = (7, 6, 5)  # x, y, z
NUMBERS = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
PLACE = np.array([[-0.9, 0.1, 0, 40], [0.1, 1.8, 0, -50], [0, 0, 3, 60], [0, 0, 0, 1.0]])
PLACE[:2, :2] = np.array([[-np.cos(0.3), -np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]]) * (0.9, 1.8)
CORNERS = np.array(list(itertools.product(*((0, size - 1) for size in SHAPE)))).T
TO_LPS = np.diag([-1, -1, 1, 1])


def nifti(path, array=NUMBERS, place=PLACE, sform=1, qform=1, kind=nib.Nifti1Image):
    image = kind(array, place)
    if hasattr(image, "set_sform"):
        image.set_sform(place, sform), image.set_qform(place, qform)
    nib.save(image, path)
    return path


def patched(path, *fields):
    """Overwrite fields of a header: (offset, form, values)."""
    content = bytearray(path.read_bytes())
    for offset, form, values in fields:
        struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


def places_mm(volume):
    """Return where the corners of a volume are (3, 8), in LPS."""
    return (volume.direction_matrix * volume.spacing_mm) @ CORNERS + np.reshape(volume.origin_mm, (3, 1))


def in_lps(place):
    """Return where the same corners are by an affine matrix to RAS, as nibabel has it."""
    return (TO_LPS @ place @ np.append(CORNERS, np.ones((1, 8)), 0))[:3]


def assert_reads_as_nibabel(path, frames=None, unit_mm=1.0):
    """Compare voxels with nibabel's, and the places of the corners."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).reshape(*SHAPE, -1)
    volumes = read_frames(path)
    assert len(volumes) == data.shape[-1] == (frames or 1)
    for index, volume in enumerate(volumes):
        np.testing.assert_allclose(volume.voxels, data[..., index].T, rtol=1e-6)
        np.testing.assert_allclose(
            places_mm(volume),
            (TO_LPS @ image.affine @ np.append(CORNERS, np.ones((1, 8)), 0))[:3] * unit_mm,
            rtol=1e-5,
        )
    return volumes


# NIfTI


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1)])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<f4", "<f8", "<i4", "<u2"])
def test_nifti_is_read_as_nibabel_reads_it(tmp_path, kind, suffix, codes, dtype):
    image = kind(NUMBERS.astype(dtype), PLACE)
    image.set_data_dtype(dtype), image.set_sform(PLACE, codes[0]), image.set_qform(PLACE, codes[1])
    nib.save(image, tmp_path / f"a{suffix}")
    (volume,) = assert_reads_as_nibabel(tmp_path / f"a{suffix}")
    assert unpacked_bytes(tmp_path / f"a{suffix}") == volume.voxels.nbytes


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.floats(1e-7, 1e4))
def test_every_rotation_lies_where_nibabel_and_simpleitk_put_it(tmp_path_factory, seed, mirrored, size):
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(3, 3)))[0] * (1, 1, -1 if mirrored else 1)
    place = np.eye(4)
    place[:3, :3], place[:3, 3] = axes * random.uniform(0.3, 3, 3) * size, random.normal(size=3) * 50 * size
    path = nifti(tmp_path_factory.mktemp("a") / "a.nii", place=place, sform=seed % 2, qform=1)
    (volume,) = assert_reads_as_nibabel(path)
    if size > 0.01:  # smaller ones SimpleITK may refuse
        image = sitk.ReadImage(path)
        theirs = np.array([image.TransformIndexToPhysicalPoint(tuple(map(int, c))) for c in CORNERS.T]).T
        np.testing.assert_allclose(places_mm(volume), theirs, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("axes", [np.eye(3)[[1, 0, 2]] * (1, 1, -1), np.diag([-1, -1, 1]), np.diag([1, -1, -1])])
def test_half_turns_are_exact_although_single_precision_rounds_their_quaternions(tmp_path, axes):
    place = np.eye(4)
    place[:3, :3] = axes
    volume = read_volume(nifti(tmp_path / "a.nii", place=place, sform=0))
    np.testing.assert_allclose(volume.direction_matrix, TO_LPS[:3, :3] @ axes, atol=1e-7)


@pytest.mark.parametrize(("unit", "unit_mm"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_units_of_nifti_become_millimetres(tmp_path, unit, unit_mm):
    image = nib.Nifti1Image(NUMBERS, PLACE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    (volume,) = assert_reads_as_nibabel(tmp_path / "a.nii.gz", unit_mm=unit_mm)
    np.testing.assert_allclose(volume.spacing_mm, np.array((0.9, 1.8, 3)) * unit_mm, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd"])
@pytest.mark.parametrize("size", [1e-6, 8e-4, 1e3])
def test_voxels_of_any_size_keep_their_grid(tmp_path, suffix, size):
    volume = Volume(NUMBERS.T, (size, size, 2 * size), (5 * size, -3 * size, 0.0))
    mask = NUMBERS.T > 500
    if suffix != ".seg.nrrd":
        write_volume(tmp_path / f"scan{suffix}", volume)
        volume = read_volume(tmp_path / f"scan{suffix}")
        np.testing.assert_allclose(volume.spacing_mm, (size, size, 2 * size), rtol=1e-6)
    write_segments(tmp_path / f"mask{suffix}", [Segment("ball", mask, (1, 0, 0))], volume)
    written = read_volume(tmp_path / f"mask{suffix}")
    assert np.array_equal(written.voxels > 0, mask)
    np.testing.assert_allclose(places_mm(written), places_mm(volume), rtol=1e-5, atol=1e-3 * size)


def test_only_axes_that_do_not_span_space_are_refused_however_long_they_are():
    for length in (1e-9, 1e9):
        check_geometry("a", (1, 1, 1), (0, 0, 0), tuple(np.eye(3).ravel() * length))
        with pytest.raises(UserError, match="cannot be inverted"):
            check_geometry("a", (1, 1, 1), (0, 0, 0), (length, 0, 0, length, 0, 0, 0, 0, length))


@pytest.mark.parametrize("suffixes", [(".hdr", ".img"), (".HDR", ".IMG"), (".hdr", ".img.gz")])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.AnalyzeImage])
def test_a_header_and_its_voxels_are_one_study_by_either_name(tmp_path, kind, suffixes):
    nifti(tmp_path / "a.img", kind=kind)
    voxels = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").unlink()
    header = (tmp_path / "a.hdr").rename(tmp_path / f"a{suffixes[0]}")
    (tmp_path / f"a{suffixes[1]}").write_bytes(gzip.compress(voxels) if suffixes[1].endswith("gz") else voxels)
    assert find_studies(tmp_path) == [header] and names_other_files(header)
    for suffix in suffixes:
        volume = read_volume(tmp_path / f"a{suffix}")
        assert np.array_equal(volume.voxels, NUMBERS.T)
        if kind == nib.AnalyzeImage:  # which says nothing of its place: as SimpleITK and so Slicer take it
            assert volume.origin_mm == (0, 0, 0) and np.array_equal(volume.direction_matrix, np.eye(3))
            np.testing.assert_allclose(volume.spacing_mm, (0.9, 1.8, 3), rtol=1e-6)
        else:
            np.testing.assert_allclose(places_mm(volume), in_lps(PLACE), rtol=1e-5)
    (tmp_path / f"a{suffixes[1]}").unlink()
    with pytest.raises(UserError, match="put the other beside it"):
        read_volume(header)


def test_dicom_may_be_called_img(tmp_path):
    write_series(tmp_path)
    path = sorted(tmp_path.iterdir())[0].rename(tmp_path / "IM0001.img")
    assert read_volume(path).modality == "CT" and not names_other_files(path)


def test_packed_or_not_is_seen_by_the_bytes_and_what_follows_them_does_not_matter(tmp_path):
    plain = nifti(tmp_path / "plain.nii").read_bytes()
    files = {
        "not packed.nii.gz": plain,
        "packed.nii": gzip.compress(plain),
        "bytes after.nii.gz": gzip.compress(plain) + b"junk" * 20,
        "zeros after.nii.gz": gzip.compress(plain) + bytes(512),
        "in parts.nii.gz": gzip.compress(plain[:300]) + gzip.compress(plain[300:500]) + gzip.compress(plain[500:]),
        "more voxels.nii": plain + bytes(100),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(read_volume(tmp_path / name).voxels, NUMBERS.T), name
    for name, content in {"cut": gzip.compress(plain)[:-20], "part": gzip.compress(plain[:400])}.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
        with pytest.raises(UserError, match="ends before its last voxel"):
            read_volume(tmp_path / f"{name}.nii.gz")


def test_sizes_of_zero_beyond_space_are_one(tmp_path):
    path = patched(nifti(tmp_path / "a.nii"), (40, "8h", (5, *SHAPE, 0, 0, 0, 0)))
    assert np.array_equal(read_volume(path).voxels, NUMBERS.T)
    for sizes in ((3, 7, 6, 0), (4, 7, 6, 5, -1)):
        with pytest.raises(UserError, match="sizes of"):
            read_volume(patched(path, (40, f"{len(sizes)}h", sizes)))


def test_an_empty_sform_leaves_the_qform_and_a_wrong_one_does_not(tmp_path):
    path = patched(nifti(tmp_path / "a.nii"), (280, "12f", (0,) * 12))
    np.testing.assert_allclose(places_mm(read_volume(path)), in_lps(PLACE), rtol=1e-5)
    with pytest.raises(UserError, match="cannot be inverted"):
        read_volume(patched(path, (252, "2h", (0, 1))))
    for bad in (np.inf, np.nan, 1e30):
        with pytest.raises(UserError, match="cannot be inverted"), warnings.catch_warnings():
            warnings.simplefilter("error")
            read_volume(patched(path, (280, "f", (bad,))))
    with pytest.raises(UserError, match="two ways"):
        read_volume(patched(path, (252, "2h", (1, 1)), (280, "12f", (5, 0, 0, 0, 0, 5, 0, 0, 0, 0, 5, 0))))


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [((0, 5), NUMBERS), ((2, 5), NUMBERS * 2 + 5), ((1, -1024), NUMBERS - 1024), ((np.nan, 3), NUMBERS)],
)
def test_a_slope_of_zero_means_none_whatever_the_intercept(tmp_path, scaling, expected):
    path = patched(nifti(tmp_path / "a.nii"), (112, "2f", scaling))
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, expected.T) and unpacked_bytes(path) == volume.voxels.nbytes


@pytest.mark.parametrize("scale", [(1.0, 0.0), (2.0, 0.0), (1.0, 7.0)])
@pytest.mark.parametrize("further", [(1, 3), (2, 1), (2, 3), (1, 2, 2), (1, 1, 2), (3, 1, 1, 2)])
def test_further_dimensions_are_frames_also_where_they_are_scaled(tmp_path, further, scale):
    """Those of vectors with a scale ended the process in ITK."""
    array = np.arange(np.prod(SHAPE) * np.prod(further)).reshape(*SHAPE, *further).astype(np.int16)
    image = nib.Nifti1Image(array, PLACE)
    image.header["intent_code"] = 1007
    nib.save(image, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", (112, "2f", scale))
    volumes = read_frames(tmp_path / "a.nii")
    frames = np.asanyarray(nib.load(tmp_path / "a.nii").dataobj).reshape(*SHAPE, -1, order="F")
    assert len(volumes) == frames.shape[-1]
    assert all(np.array_equal(volume.voxels, frames[..., i].T) for i, volume in enumerate(volumes))
    with pytest.raises(UserError, match=f"has {len(volumes)} frames; choose one"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("letters", ["RGB", "RGBA"])
def test_colours_of_nifti_are_colours_and_their_alpha_is_dropped(tmp_path, letters):
    array = np.zeros(SHAPE, [(letter, "u1") for letter in letters])
    for number, letter in enumerate(letters):
        array[letter] = (NUMBERS + 50 * number) % 250
    volume = read_volume(nifti(tmp_path / "a.nii.gz", array))
    expected = np.stack([array[letter].T for letter in "RGB"], -1)
    assert np.array_equal(volume.voxels, expected)
    assert intensity_range(volume) == (0, 255)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("components", [3, 4])
@pytest.mark.parametrize("shape", [(5, 6, 7), (6, 7)])
def test_three_or_four_bytes_a_voxel_are_colours_in_every_format(tmp_path, suffix, components, shape):
    array = np.random.default_rng(1).integers(0, 255, (*shape, components)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.voxels.squeeze(), array[..., :3]) and volume.flat == (len(shape) == 2)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize(("shape", "components"), [((6, 7), 2), ((6, 7), 3), ((5, 6, 7), 3), ((5, 6, 7), 6)])
def test_other_numbers_a_voxel_are_frames_in_every_format(tmp_path, suffix, dtype, shape, components):
    array = np.random.default_rng(1).normal(0, 99, (*shape, components)).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), tmp_path / f"a{suffix}")
    volumes = read_frames(tmp_path / f"a{suffix}")
    assert len(volumes) == components
    assert all(np.array_equal(volume.voxels.squeeze(), array[..., i]) for i, volume in enumerate(volumes))


@pytest.mark.parametrize(("code", "bits"), [(1, 1), (32, 64), (1536, 128), (1792, 128), (9999, 8)])
def test_numbers_that_are_not_real_are_refused_by_their_type(tmp_path, code, bits):
    with pytest.raises(UserError, match=f"NIfTI's type {code}"):
        read_volume(patched(nifti(tmp_path / "a.nii"), (70, "2h", (code, bits))))


@pytest.mark.parametrize("size", [8e-4, 1.0, 1e3])
def test_label_maps_may_lie_a_hundredth_of_a_voxel_away_whatever_its_size(tmp_path, size):
    volume = Volume(NUMBERS.T, (size, size, 2 * size))
    for away, fits in ((0.004, True), (0.02, False), (1, False)):
        moved = Volume((NUMBERS.T > 500).astype(np.uint8), (size, size, 2 * size), (0, away * size, 0))
        write_volume(tmp_path / "labels.nrrd", moved)
        if fits:
            labels = read_label_map(tmp_path / "labels.nrrd", {"ball": (1,)}, volume)
            assert np.array_equal(labels.mask("ball"), NUMBERS.T > 500)
        else:
            with pytest.raises(UserError, match="not on the grid"):
                read_label_map(tmp_path / "labels.nrrd", {"ball": (1,)}, volume)


def test_a_label_map_with_nan_is_none(tmp_path):
    volume = Volume(NUMBERS.T)
    array = NUMBERS.astype(np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="no label map"):
        read_label_map(nifti(tmp_path / "a.nii", array, np.diag([-1, -1, 1, 1])), {"ball": (1,)}, volume)


# MetaImage

META = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
META |= {"DimSize": "7 6 5", "ElementType": "MET_SHORT"}
RAW = NUMBERS.T.astype("<i2").tobytes()
SLICE = len(RAW) // 5


def meta(path, content=RAW, place="LOCAL", **fields):
    lines = (META | fields | {"ElementDataFile": place}).items()
    path.write_bytes("".join(f"{name} = {value}\n" for name, value in lines).encode() + content)
    return path


@pytest.mark.parametrize("packed", [zlib.compress(RAW), gzip.compress(RAW)])
@pytest.mark.parametrize("size", [{}, {"CompressedDataSize": "7"}, {"CompressedDataSize": "99999"}])
def test_packed_voxels_are_read_whatever_size_is_told(tmp_path, packed, size):
    path = meta(tmp_path / "a.mha", packed, CompressedData="True", **size)
    assert np.array_equal(read_volume(path).voxels, NUMBERS.T)
    (tmp_path / "a.zraw").write_bytes(packed)
    path = meta(tmp_path / "b.mhd", b"", "a.zraw", CompressedData="True", **size)
    assert np.array_equal(read_volume(path).voxels, NUMBERS.T)


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize(
    "content", [zlib.compress(RAW[:-2]), zlib.compress(RAW)[:-9], zlib.compress(b""), gzip.compress(RAW[:100])]
)
def test_packed_voxels_that_are_too_few_are_refused(tmp_path, content, attached):
    (tmp_path / "a.zraw").write_bytes(content)
    path = meta(
        tmp_path / "a.mha", content if attached else b"", "LOCAL" if attached else "a.zraw", CompressedData="True"
    )
    with pytest.raises(UserError, match="ends before its last voxel"):
        read_volume(path)


def slices(folder, count, size=SLICE):
    for number in range(count):
        (folder / f"s{number:02d}.raw").write_bytes(RAW[number * SLICE :][:size])
    return "\n".join(f"s{number:02d}.raw" for number in range(count)).encode()


def test_voxels_in_several_files_are_read_and_none_may_lack(tmp_path):
    names = slices(tmp_path, 5)
    for place in ("LIST", "LIST 2", "s%02d.raw 0 4 1"):
        assert np.array_equal(read_volume(meta(tmp_path / "a.mhd", names, place)).voxels, NUMBERS.T)
    assert np.array_equal(read_volume(meta(tmp_path / "a.mhd", names, "LIST", HeaderSize="-1")).voxels, NUMBERS.T)
    for content, place in ((names[:-8], "LIST"), (b"", "LIST"), (names, "LIST 3"), (b"", "s%02d.raw 0 3 1")):
        with pytest.raises(UserError, match=r"names \d files for its voxels and needs \d"):
            read_volume(meta(tmp_path / "a.mhd", content, place))
    for pattern in ("s%02d.raw", "s%n.raw 0 4 1", "s%02d.raw 0 4 0"):
        with pytest.raises(UserError, match="mend it"):
            read_volume(meta(tmp_path / "a.mhd", b"", pattern))
    (tmp_path / "s03.raw").write_bytes(RAW[: SLICE - 1])
    with pytest.raises(UserError, match=r"s03\.raw ends before its last voxel"):
        read_volume(meta(tmp_path / "a.mhd", names, "LIST"))
    (tmp_path / "s03.raw").unlink()
    with pytest.raises(UserError, match=r"s03\.raw.*cannot be read"):
        read_volume(meta(tmp_path / "a.mhd", names, "LIST"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"TransformMatrix": "0 1 0 -1 0 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "2 3 4"},
        {"Rotation": "0.6 0.8 0 -0.8 0.6 0 0 0 -1", "Position": "1 2 3", "ElementSize": "2 3 4"},
        {
            "Orientation": "1 0 0 0 0 1 0 -1 0",
            "Origin": "-9 8 7",
            "ElementSpacing": "2 3 4",
            "ElementSize": "5 6 7",
        },
        {"ElementSpacing": "2 -3 4"},
        {"BinaryDataByteOrderMSB": "True"},
        {"ElementType": "MET_UCHAR", "ElementNumberOfChannels": "2"},
        {"ElementType": "MET_INT", "DimSize": "7 6 2"},
        {"ElementType": "MET_LONG", "DimSize": "7 6 2"},
        {"ElementType": "MET_FLOAT", "DimSize": "7 6 2"},
        {"NDims": "4", "DimSize": "7 6 1 5", "ElementSpacing": "2 3 4 9", "Offset": "1 2 3 0"},
        {"NDims": "2", "DimSize": "7 30", "ElementSpacing": "2 3", "Offset": "1 2"},
    ],
)
def test_metaimage_is_read_as_simpleitk_reads_it(tmp_path, fields):
    path = meta(tmp_path / "a.mha", **fields)
    image = sitk.ReadImage(path)
    volumes = read_frames(path)
    theirs = sitk.GetArrayFromImage(image)
    theirs = np.moveaxis(theirs, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else theirs
    for index, volume in enumerate(volumes):
        expected = theirs if len(volumes) == 1 else theirs[index]
        np.testing.assert_array_equal(volume.voxels.squeeze(), expected.squeeze())
        axes = min(image.GetDimension(), 3)
        matrix = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:axes, :axes]
        np.testing.assert_allclose(volume.direction_matrix[:axes, :axes], matrix, atol=1e-12)
        assert volume.spacing_mm[:axes] == image.GetSpacing()[:axes]
        assert volume.origin_mm[:axes] == image.GetOrigin()[:axes]


def test_voxels_in_words_and_after_another_header_are_read(tmp_path):
    words = " ".join(map(str, NUMBERS.T.ravel())).encode()
    assert np.array_equal(read_volume(meta(tmp_path / "a.mha", words, BinaryData="False")).voxels, NUMBERS.T)
    for content, message in ((words[:-9], "ends before"), (words.replace(b" ", b" x", 1), "no numbers")):
        with pytest.raises(UserError, match=message):
            read_volume(meta(tmp_path / "a.mha", content, BinaryData="False"))
    (tmp_path / "a.raw").write_bytes(b"0123456789" + RAW)
    for size in ("10", "-1"):
        path = meta(tmp_path / "a.mhd", b"", "a.raw", HeaderSize=size)
        assert np.array_equal(read_volume(path).voxels, NUMBERS.T)
    with pytest.raises(UserError, match="ends before"):
        read_volume(meta(tmp_path / "a.mhd", b"", "a.raw", HeaderSize="11"))


# NRRD

NRRD = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "7 6 5"}
NRRD |= {"space directions": "(1,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little"}
NRRD |= {"space origin": "(4,5,6)", "encoding": "raw"}
EMPTY_LINE = next(  # voxels that are packed into bytes among which is what ends a header
    noise
    for noise in (
        np.random.default_rng(seed).integers(0, 2000, 210).astype("<i2").tobytes() for seed in range(9999)
    )
    if b"\n\n" in gzip.compress(noise, mtime=0)
)


def nrrd(path, content, end="\n", after=b"", **fields):
    lines = ["NRRD0004", *(f"{name.replace('_', ' ')}: {value}" for name, value in (NRRD | fields).items())]
    path.write_bytes(end.join([*lines, "", ""]).encode() + after + content)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("lines", [0, 2])
@pytest.mark.parametrize("skip", [0, 8])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
def test_nrrd_with_other_line_ends_and_skipped_lines_and_bytes_is_read_as_simpleitk_reads_it(
    tmp_path, end, lines, skip, encoding
):
    content = b"\n" * skip + EMPTY_LINE
    content = content if encoding == "raw" else gzip.compress(content, mtime=0)
    more = {"encoding": encoding} | ({"line skip": lines} if lines else {}) | ({"byte skip": skip} if skip else {})
    path = nrrd(tmp_path / "a.nrrd", content, end, b"one\ntwo\n" if lines else b"", **more)
    expected = np.frombuffer(EMPTY_LINE, "<i2").reshape(5, 6, 7)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), expected)
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, expected)
    assert volume.spacing_mm == (1, 2, 3) and volume.origin_mm == (4, 5, 6)
    for cut in (30, 9):
        with pytest.raises(UserError, match="ends before its last voxel"):
            read_volume(nrrd(tmp_path / "a.nrrd", content[:-cut], end, b"one\ntwo\n" if lines else b"", **more))


def test_nrrd_with_its_voxels_in_several_files_is_read_and_none_may_lack(tmp_path):
    names = slices(tmp_path, 5)
    for place in ("s%02d.raw 0 4 1", "s%02d.raw 0 4 1 2", "LIST", "LIST 2"):
        after = names + b"\n" if "LIST" in place else b""
        path = nrrd(tmp_path / "a.nhdr", b"", **{"data file": place})
        path.write_bytes(path.read_bytes()[:-1] + after)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), NUMBERS.T), place
        assert np.array_equal(read_volume(path).voxels, NUMBERS.T), place
    assert np.array_equal(
        read_volume(nrrd(tmp_path / "a.nhdr", b"", **{"data file": "s%02d.raw 4 0 -1"})).voxels, NUMBERS.T[::-1]
    )
    with pytest.raises(UserError, match=r"s05\.raw.*cannot be read"):
        read_volume(nrrd(tmp_path / "a.nhdr", b"", **{"data file": "s%02d.raw 1 5 1"}))
    (tmp_path / "s03.raw").write_bytes(RAW[: SLICE - 1])
    with pytest.raises(UserError, match=r"s03\.raw ends before its last voxel"):
        read_volume(nrrd(tmp_path / "a.nhdr", b"", **{"data file": "s%02d.raw 0 4 1"}))
    for number in range(5):
        (tmp_path / f"z{number}.gz").write_bytes(gzip.compress(RAW[number * SLICE :][:SLICE]))
    packed = nrrd(tmp_path / "a.nhdr", b"", encoding="gzip", **{"data file": "z%d.gz 0 4 1"})
    assert np.array_equal(read_volume(packed).voxels, NUMBERS.T)
    (tmp_path / "z3.gz").write_bytes(gzip.compress(RAW[: SLICE - 1]))
    with pytest.raises(UserError, match=r"z3\.gz ends before its last voxel"):
        read_volume(packed)


def test_images_side_by_side_in_nrrd_are_frames_and_no_colours(tmp_path):
    array = np.random.default_rng(1).integers(0, 255, (5, 6, 7, 3)).astype(np.uint8)
    head = {"type": "uchar", "dimension": "4", "sizes": "3 7 6 5", "kinds": "list domain domain domain"}
    head |= {"space directions": "none (1,0,0) (0,1,0) (0,0,1)"}
    volumes = read_frames(nrrd(tmp_path / "a.nrrd", array.tobytes(), **head))
    assert [np.array_equal(volume.voxels, array[..., i]) for i, volume in enumerate(volumes)] == [True] * 3
    colours = nrrd(tmp_path / "a.nrrd", array.tobytes(), **(head | {"kinds": "RGB-color domain domain domain"}))
    assert np.array_equal(read_volume(colours).voxels, array)


def test_matrices_are_refused_in_words(tmp_path):
    head = {
        "type": "float",
        "dimension": "4",
        "sizes": "6 7 6 5",
        "space directions": "none (1,0,0) (0,1,0) (0,0,1)",
    }
    head["kinds"] = "3D-symmetric-matrix domain domain domain"
    with pytest.raises(UserError, match="holds a matrix a voxel"):
        read_volume(nrrd(tmp_path / "a.nrrd", bytes(4 * 6 * 210), **head))


# Pictures


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_last_pages_lack_is_refused_without_a_word_of_a_library(tmp_path, packed, dtype, capfd):
    array = np.random.default_rng(0).integers(0, 255, (4, 30, 20)).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / "a.tif", packed)
    pages = [Image.fromarray(page) for page in array]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    for name in ("a", "b"):
        content = (tmp_path / f"{name}.tif").read_bytes()
        assert np.array_equal(read_volume(tmp_path / f"{name}.tif").voxels, array)
        for share in (0.99, 0.8, 0.5, 0.2):
            (tmp_path / "cut.tif").write_bytes(content[: int(share * len(content))])
            with pytest.raises(UserError, match=r"cut\.tif"):
                read_volume(tmp_path / "cut.tif")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_bright_is_bright_where_white_is_zero(tmp_path, dtype):
    fields = TiffImagePlugin.ImageFileDirectory_v2()
    fields[262] = 0
    seen = np.zeros((20, 30), dtype)
    seen[5:9, 3:20] = True if dtype is bool else np.iinfo(dtype).max
    stored = ~seen if dtype is np.uint16 else seen  # Pillow turns the others itself, when it writes and reads
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo=fields)
    with Image.open(tmp_path / "a.tif") as saved:
        assert saved.tag_v2[262] == 0 and np.array_equal(np.asarray(saved), stored)
    voxels = read_volume(tmp_path / "a.tif").voxels[0]
    grey = voxels if voxels.ndim == 2 else voxels[..., 0]
    assert np.array_equal(grey == grey.max(), seen > 0) and grey.min() == 0
