"""What the tests share: a tiny but real CLIPSeg, adapters for it, and the shared data where it is there."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from transformers import CLIPSegConfig

from engine.cli import run
from engine.client.launching import Server
from engine.models import bases
from engine.models.bases import save_clip
from engine.models.bundle import AdapterCard, save_bundle
from engine.models.vocabulary import train_tokenizer
from engine.nets.initialise import new_network
from engine.nets.methods import METHODS, build_model
from engine.nets.towers import new_clip
from engine.prompts import MAXIMUM_TOKENS

SIDE = 64
PATIENCE_SECONDS = 600  # for what takes seconds on an idle machine: only what hangs takes longer on a busy one
ROOT = Path(__file__).resolve().parent.parent
SHIPPED_ADAPTERS = sorted(path.parent.name for path in ROOT.glob("Resources/Models/*/adapter.safetensors"))

# Where a script started this in the background, Ctrl-C is ignored here, and would be in all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # it is not in the viewer's environment
    from hypothesis import HealthCheck, settings

    # A busy machine may take long over any example.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def own_models_folder(tmp_path):
    """Keep the tests out of the user's models."""
    with own_folder(tmp_path / "models"):
        yield


@contextmanager
def own_folder(models: Path):
    """Let the engine look for the user's models in `models`, and nowhere on a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLSM_MODELS", str(models))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("VLSM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the shared data is not at {folder}; set VLSM_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A CLIPSeg of four narrow layers for squares of 64 pixels, as a base folder."""
    return make_base(tmp_path_factory.mktemp("bases") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory) -> Path:
    """The same network with other weights."""
    return make_base(tmp_path_factory.mktemp("bases") / "other", seed=1)


@pytest.fixture(scope="session")
def clip_bases(tmp_path_factory):
    """Small CLIPs with a vision transformer and with a ResNet, as folders of open_clip's format."""
    folder = tmp_path_factory.mktemp("clips")
    tokenizer = train_tokenizer(
        ["polyp", "left lung", "a bright ball in the brain", "bright disc", "round thing"], 300
    )
    for seed, name in enumerate(("transformer", "residual")):
        config = small_clip_config(tokenizer, residual=name == "residual")
        torch.manual_seed(seed)
        save_clip(folder / name, new_clip(config), config, tokenizer)
    return folder


@pytest.fixture(scope="session")
def made_adapter(tmp_path_factory, tiny_base) -> Path:
    return make_adapter(tmp_path_factory.mktemp("made") / "adapter", tiny_base)


@pytest.fixture
def tiny_adapter(tmp_path, made_adapter) -> Path:
    """A dense adapter bundle for the tiny base, with random weights."""
    return shutil.copytree(made_adapter, tmp_path / "adapter")


@pytest.fixture(scope="session")
def served_models(tmp_path_factory, tiny_base) -> Path:
    """A folder of models with the base "tiny" and the adapter "ball", whose threshold is 0.3."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny_base, folder / "tiny")
    make_adapter(folder / "ball", folder / "tiny", threshold=0.3)
    return folder


@pytest.fixture(scope="session")
def allowed_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="session")
def server(served_models, allowed_folder):
    """A server in a process of its own, with small limits, that computes slice by slice."""
    limits = ["--body-mb", 8, "--memory-mb", 64, "--volumes", 4, "--waiting", 3]
    with new_server(served_models, *limits, "--allow-path", allowed_folder) as server:
        server.start()
        yield server


@pytest.fixture
def pictures(tmp_path):
    """Four pictures of 40 × 50 pixels with a bright disc, in the MedVLSM layout."""
    folder = tmp_path / "discs"
    for part in ("images", "masks", "anns"):
        (folder / part).mkdir(parents=True)
    rows = []
    for number in range(4):
        disc = ball((1, 40, 50), (0, 12 + 4 * number, 15 + 5 * number), 8)[0]
        picture = np.random.default_rng(number).integers(0, 60, (40, 50, 3)).astype(np.uint8)
        picture[disc] = (220, 200, 180)
        sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), folder / "images" / f"{number}.png")
        sitk.WriteImage(sitk.GetImageFromArray(disc.astype(np.uint8) * 255), folder / "masks" / f"{number}.jpg")
        prompts = {"p0": "", "p1": ["disc"], "p2": ["bright disc", "round thing"]}
        rows.append({"img_name": f"{number}.png", "mask_name": f"{number}.jpg", "prompts": prompts})
    for split, chosen in {"train": rows[:2], "val": rows[2:3], "test": rows[3:]}.items():
        (folder / "anns" / f"{split}.json").write_text(json.dumps(chosen))
    return folder


@pytest.fixture
def volumes(tmp_path):
    """Ten volumes with a ball and a cube in it, in the Decathlon layout; some slices are empty."""
    folder = tmp_path / "balls"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    rows = []
    for number in range(10):
        labels = np.zeros((12, 16, 20), np.uint8)
        labels[ball(labels.shape, (6, 8, 6), 3)] = 1
        labels[5:7, 4:8, 14:18] = 2
        image = sitk.GetImageFromArray(labels * 50 + np.random.default_rng(number).integers(0, 9, labels.shape))
        for part, kind in (("imagesTr", image), ("labelsTr", sitk.GetImageFromArray(labels))):
            sitk.WriteImage(sitk.Cast(kind, sitk.sitkInt16), folder / part / f"{number}.nii.gz")
        rows.append({"image": f"./imagesTr/{number}.nii.gz", "label": f"./labelsTr/{number}.nii.gz"})
    description = {"labels": {"0": "background", "1": "ball", "2": "cube"}, "training": rows}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def dicom_writer():
    """`write_series`, for folders with a conftest.py of their own."""
    return write_series


def new_server(models: Path, *arguments, python: str | None = None) -> Server:
    settings = ["--device", "cpu", "--precision", "fp32", "--batch-size", 1, *arguments]
    return Server(python, [str(word) for word in settings], {"VLSM_MODELS": str(models)})


def make_base(folder: Path, seed: int) -> Path:
    tokenizer = train_tokenizer(["polyp", "brain", "left lung", "right lung", "bright ball"], 300)
    config = CLIPSegConfig(
        vision_config={"image_size": SIDE, "patch_size": 16, **_widths(32)},
        text_config={
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAXIMUM_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **_widths(16),
        },
        projection_dim=16,
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        extract_layers=[0, 1, 2],
        use_complex_transposed_convolution=True,
    )
    torch.manual_seed(seed)
    new_network(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": SIDE, "width": SIDE}}))
    return folder


def small_clip_config(tokenizer, residual: bool) -> dict:
    vision = {"image_size": SIDE, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16}
    if residual:
        vision = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
    text = {"vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 2, "context_length": 77}
    text |= {"pool_type": "eos", "eos_id": tokenizer.eos_token_id}
    return {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def make_adapter(
    folder: Path, base_folder: Path, method: str = "dense", placement: str = "VL", noise: float = 0, **card
) -> Path:
    """Make an adapter as training finds it at its start, or with noise on its weights, which makes others."""
    base = bases.open_base(str(base_folder))
    torch.manual_seed(3)
    hidden_size = METHODS[method].hidden_size
    if placement not in METHODS[method].placements:
        placement = METHODS[method].placements[0]
    trained = build_model(method, base.load_network(), placement, hidden_size).trained
    with torch.no_grad():
        for weight in trained.parameters():
            weight += noise * torch.randn_like(weight)
    values = {"prompts": ["brain"], "presence_threshold": 0.0} | card
    described = AdapterCard(
        name=folder.name,
        method=method,
        placement=placement,
        hidden_size=hidden_size,
        base=str(base_folder),
        base_sha256=base.sha256,
        **values,
    )
    save_bundle(folder, trained, described)
    return folder


def ball(shape: tuple[int, int, int], center: tuple[float, float, float], radius: float) -> np.ndarray:
    """Return a bool ball in array order (z, y, x)."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.array(center), axis=-1) <= radius


def write_series(
    folder, positions=(0, 2, 4, 6), uid=None, number=1, description="Thorax", pixels=None, **attributes
):
    """Write slices whose voxels are their position in mm, or `pixels` (slices, rows, columns) int16; their names
    come in another order.

    Args:
        attributes: set in every slice; a list for a name that begins with "Image" has one value for each slice.
    """
    uid = uid or generate_uid()
    for index, position in enumerate(positions):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.SeriesNumber, slice_.SeriesDescription = uid, number, description
        slice_.StudyInstanceUID, slice_.Modality, slice_.PatientName = uid, "CT", "Secret^Name"
        slice_.Rows, slice_.Columns, slice_.PixelSpacing = 6, 5, [0.5, 0.25]
        slice_.ImagePositionPatient = [10, 20, position]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.RescaleSlope, slice_.RescaleIntercept = 2, -1000
        slice_.WindowCenter, slice_.WindowWidth = [40, 300], [400, 1500]
        for key, value in attributes.items():
            setattr(slice_, key, value[index] if isinstance(value, list) and key.startswith("Image") else value)
        plane = np.full((6, 5), round(position), np.int16) if pixels is None else pixels[index].astype(np.int16)
        slice_.Rows, slice_.Columns, slice_.PixelData = *plane.shape, plane.tobytes()
        name = hashlib.sha256(repr((uid, index, position, attributes)).encode()).hexdigest()[:8]
        slice_.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return uid


def wait_until(condition) -> None:
    """Wait for a state, however long a busy machine takes to reach it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def run_command(monkeypatch, capsys, main, *arguments) -> tuple[int, str, str]:
    """Run a command's main in this process, as a shell would; return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    code = 0
    try:
        run(main)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@contextmanager
def small_disk(folder, size: str):
    """A file system of a few bytes in memory."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def files(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def _widths(size: int) -> dict:
    return {
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
