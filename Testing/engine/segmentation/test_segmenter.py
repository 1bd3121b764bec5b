"""The main job as a library: encode once, ask many times."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SIDE, ball, make_adapter

from engine.errors import Cancelled, UserError
from engine.imaging.volumes.intensity import intensity_range
from engine.imaging.volumes.planes import PLANES, orient
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.prompts import encode_prompts
from engine.segmentation.cache import EncodingCache
from engine.segmentation.devices import choose_batch_size, choose_device, choose_dtype, in_batches
from engine.segmentation.pixels import to_pixel_values
from engine.segmentation.placing import place_model
from engine.segmentation.segmenter import Segmenter
from engine.segmentation.transfers import Transfers

SHAPE = (6, 20, 24)


@pytest.fixture
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    voxels[ball(SHAPE, (3, 10, 12), 4)] += 200
    voxels[0] = voxels.min()  # a slice of empty air
    return Volume(voxels, (1, 1, 2), (5, 6, 7), (-1, 0, 0, 0, -1, 0, 0, 0, 1), name="test")


@pytest.fixture
def segmenter(tiny_base) -> Segmenter:
    return Segmenter(base=str(tiny_base), device="cpu", precision="fp32")


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1]), np.diag([1, -1, -1]), np.eye(3)[[2, 0, 1]]])
@pytest.mark.parametrize("plane", PLANES)
def test_without_an_adapter_the_probabilities_are_hugging_faces(segmenter, tiny_base, plane, direction):
    voxels = np.random.default_rng(0).normal(100, 10, (7, 8, 9)).astype(np.float32)
    volume = Volume(voxels, direction=tuple(direction.ravel()))
    stack = orient(voxels, volume, plane)
    air = [0, 3, 4, len(stack) - 1]
    stack[air] = voxels.min()
    segmenter.set_volume(volume, plane=plane, window="percentiles")
    ours = orient(segmenter.segment("brain").probability, volume, plane)

    base = open_base(str(tiny_base))
    low, high = intensity_range(volume, "percentiles")
    unit = ((torch.from_numpy(stack.copy()) - low) / (high - low)).clamp(0, 1)
    tokens = encode_prompts(base.load_tokenizer(), ["brain"])
    network = base.load_network()
    for position in range(len(stack)):
        pixel_values = to_pixel_values(unit[position : position + 1], SIDE, base.mean, base.std)
        with torch.no_grad():
            logits = network(pixel_values=pixel_values, input_ids=tokens).logits.view(1, 1, SIDE, SIDE)
        plain = torch.nn.functional.interpolate(logits, stack.shape[1:], mode="bilinear").sigmoid()[0, 0]
        expected = np.zeros_like(plain) if position in air else plain.numpy()
        np.testing.assert_allclose(ours[position], expected, atol=1e-3)


def test_a_volume_is_encoded_once_for_all_its_prompts(segmenter, volume, monkeypatch):
    encoded = []
    encode = segmenter.model.activations
    monkeypatch.setattr(segmenter.model, "activations", lambda p: encoded.append(len(p)) or encode(p))
    segmenter.set_volume(volume)
    first = segmenter.segment("brain")
    segmenter.segment("left lung")
    segmenter.set_volume(volume)
    again = segmenter.segment("brain")
    assert sum(encoded) == SHAPE[0] - 1  # all but the slice of air
    assert np.array_equal(first.probability, again.probability)


@pytest.mark.parametrize(
    "change",
    [{"spacing_mm": (1, 1, 3)}, {"origin_mm": (0, 0, 0)}, {"direction": tuple(np.eye(3).ravel())}, {"voxels": -1}],
)
def test_another_volume_is_encoded_anew(segmenter, volume, change):
    segmenter.set_volume(volume, plane="axial", window="percentiles")
    fields = vars(volume) | change
    if "voxels" in change:
        fields["voxels"] = volume.voxels + 1
    segmenter.set_volume(Volume(**fields), plane="axial", window="percentiles")
    assert len(segmenter.cache) == 2


@pytest.mark.parametrize("settings", [{"plane": "coronal"}, {"window": "full"}])
def test_another_plane_or_window_is_encoded_anew(segmenter, volume, settings):
    segmenter.set_volume(volume, **({"plane": "axial", "window": "percentiles"}))
    segmenter.set_volume(volume, **({"plane": "axial", "window": "percentiles"} | settings))
    assert len(segmenter.cache) == 2


def test_the_cache_takes_no_more_than_half_precision_maps(segmenter, volume):
    segmenter.set_volume(volume)
    tokens, reduce_dim, depth = (SIDE // 16) ** 2 + 1, 16, 3
    assert segmenter.cache.nbytes == (SHAPE[0] - 1) * tokens * reduce_dim * depth * 2


def test_a_threshold_moves_without_the_model(segmenter, volume):
    segmenter.set_volume(volume)
    result = segmenter.segment("brain")
    segmenter.model = None
    thresholds = np.quantile(result.probability[1:].astype(float), [0.2, 0.5, 0.8])
    sizes = [np.sum(result.probability >= np.float16(t)) for t in thresholds]
    found = type(result)(**{**vars(result), "presence_threshold": 0.0})
    assert [found.mask(t).sum() for t in thresholds] == sizes
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_air_has_no_probability(segmenter, volume):
    segmenter.set_volume(volume, plane="axial")
    probability = segmenter.segment("brain").probability
    assert (probability[0] == 0).all() and (probability[1:] > 0).all()


def test_all_planes_are_the_mean_of_the_three(segmenter, volume):
    single = []
    for plane in PLANES:
        segmenter.set_volume(volume, plane=plane)
        single.append(segmenter.segment("brain").probability.astype(np.float32))
    segmenter.set_volume(volume, plane="all")
    np.testing.assert_allclose(segmenter.segment("brain").probability, np.mean(single, axis=0), atol=1e-3)


def test_the_batch_size_does_not_change_the_result(tiny_base, volume):
    results = []
    for batch_size in (1, 4):
        segmenter = Segmenter(base=str(tiny_base), device="cpu", precision="fp32", batch_size=batch_size)
        segmenter.set_volume(volume)
        results.append(segmenter.segment("brain"))
    np.testing.assert_allclose(results[0].probability, results[1].probability, atol=1e-3)
    assert results[0].presence == pytest.approx(results[1].presence, abs=1e-5)


@pytest.mark.parametrize("method", ["shallow", "dense"])
def test_an_adapter_changes_the_result_and_gives_its_defaults(tmp_path, tiny_base, segmenter, volume, method):
    folder = make_adapter(tmp_path / "a", tiny_base, method, plane="coronal", threshold=0.3, window="full")
    adapted = Segmenter(str(folder), device="cpu", precision="fp32")
    adapted.set_volume(volume)
    segmenter.set_volume(volume, plane="coronal", window="full")
    ours, plain = adapted.segment("brain"), segmenter.segment("brain")
    assert ours.threshold == 0.3 and plain.threshold == 0.5
    assert not np.allclose(ours.probability, plain.probability, atol=1e-3)


def test_progress_reaches_the_total(segmenter, volume):
    seen = []
    segmenter.set_volume(volume, on_progress=lambda done, total: seen.append((done, total)))
    segmenter.segment("brain", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (SHAPE[0] - 1, SHAPE[0] - 1)
    assert all(done <= total for done, total in seen)


def test_after_cancelling_no_prompt_is_answered_for_the_volume_before(segmenter, volume):
    def cancel(done, total):
        raise Cancelled

    segmenter.set_volume(volume)
    with pytest.raises(Cancelled):
        segmenter.set_volume(volume, window="full", on_progress=cancel)
    with pytest.raises(UserError, match="no volume"):
        segmenter.segment("brain")


def test_a_volume_that_is_forgotten_is_held_no_more(segmenter, volume):
    segmenter.cache = kept_apart = EncodingCache()
    segmenter.set_volume(volume)
    segmenter.forget_volume()
    assert len(kept_apart) == 1
    with pytest.raises(UserError, match="no volume"):
        segmenter.segment("brain")
    assert segmenter.volume is None and not segmenter._planes


def test_what_is_not_present_has_an_empty_mask(segmenter, volume):
    segmenter.set_volume(volume)
    result = segmenter.segment("brain")
    assert 0 < result.presence < 1
    absent = type(result)(**{**vars(result), "presence_threshold": result.presence + 0.01})
    assert not absent.found and not absent.mask(0.0).any()


def test_a_picture_is_segmented_in_colour(segmenter):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 30, 40, 3)).astype(np.uint8)
    segmenter.set_volume(Volume(pixels, flat=True))
    assert segmenter.segment("polyp").probability.shape == (1, 30, 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, v: s.segment("brain"), "call set_volume first"),
        (lambda s, v: (s.set_volume(v), s.segment("  ")), "an empty prompt"),
        (lambda s, v: (s.set_volume(v), s.segment("left lung " * 50)), "tokens and the base reads at most 77"),
        (lambda s, v: (s.set_volume(v), s.segment("brain", threshold=1.5)), "between 0 and 1"),
        (lambda s, v: s.set_volume(Volume(np.full((2, 3, 4), 7))), "nothing to segment"),
        (lambda s, v: s.set_volume(v, plane="flat"), "unknown plane"),
    ],
)
def test_bad_requests_are_refused(segmenter, volume, call, message):
    with pytest.raises(UserError, match=message):
        call(segmenter, volume)


def test_batches_halve_when_memory_runs_out():
    sizes, covered = [], []

    def run(part):
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError
        covered.extend(range(part.start, part.stop))

    assert in_batches(run, 10, 8) == 2
    assert covered == list(range(10))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(lambda part: (_ for _ in ()).throw(torch.OutOfMemoryError()), 3, 2)


def full_on_meta(encode):
    """An encoder for which the memory of the device "meta" is always full."""

    def activations(pixel_values):
        if pixel_values.is_meta:
            raise torch.OutOfMemoryError
        return encode(pixel_values)

    return activations


def test_where_not_even_one_slice_fits_the_cpu_takes_over_and_says_so(tiny_base, volume, monkeypatch, caplog):
    segmenter = Segmenter(base=str(tiny_base), device="cpu")
    segmenter.set_volume(volume)
    expected = segmenter.segment("brain").probability
    other_precision = torch.finfo(torch.bfloat16).eps * 8
    monkeypatch.setattr(segmenter.model, "activations", full_on_meta(segmenter.model.activations))
    segmenter.device, segmenter.batch_size = torch.device("meta"), 4
    segmenter._transfers = Transfers(segmenter.device)
    segmenter.set_volume(volume.with_voxels(volume.voxels + 1))
    assert "going on with the CPU" in caplog.text
    assert segmenter.device.type == "cpu"
    np.testing.assert_allclose(segmenter.segment("brain").probability, expected, atol=other_precision)


@pytest.mark.parametrize("plane", ["axial", "all"])
def test_a_batch_that_memory_ran_out_for_at_its_end_counts_once(segmenter, volume, monkeypatch, plane):
    segmenter.batch_size = 4
    segmenter.set_volume(volume, plane=plane)
    expected = segmenter.segment("brain")
    full = [True, False, True]
    topk = torch.Tensor.topk

    def topk_that_runs_out(values, count):
        if full and full.pop(0):
            raise torch.OutOfMemoryError
        return topk(values, count)

    monkeypatch.setattr(torch.Tensor, "topk", topk_that_runs_out)
    result = segmenter.segment("brain")
    assert not full
    np.testing.assert_allclose(result.probability, expected.probability, atol=1e-3)
    assert result.presence == pytest.approx(expected.presence, abs=1e-4)


@pytest.mark.parametrize("overflow", [np.inf, -np.inf, np.nan])
def test_what_overflows_is_an_error_and_no_result(segmenter, volume, monkeypatch, overflow):
    decode = segmenter.model.decode

    def decode_with_overflow(maps, condition):
        logits = decode(maps, condition)
        logits[0, 0, 0] = overflow
        return logits

    segmenter.set_volume(volume)
    monkeypatch.setattr(segmenter.model, "decode", decode_with_overflow)
    with pytest.raises(UserError, match="--precision fp32"):
        segmenter.segment("brain")


def test_the_cpu_takes_over_wherever_the_program_has_gone(tmp_path, tiny_adapter, volume, monkeypatch):
    monkeypatch.chdir(tiny_adapter.parent)
    segmenter = Segmenter(tiny_adapter.name, device="cpu")
    segmenter.set_volume(volume)
    expected = segmenter.segment("brain").probability
    monkeypatch.chdir(tmp_path.parent)
    segmenter._move_to_cpu()
    assert np.array_equal(segmenter.segment("brain").probability, expected)


def test_bases_that_read_slices_of_another_size_share_no_encodings(tmp_path, tiny_base, segmenter, volume):
    shutil.copytree(tiny_base, tmp_path / "other")
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps({"size": SIDE // 2}))
    other, alone = (Segmenter(base=str(tmp_path / "other"), device="cpu", precision="fp32") for _ in range(2))
    assert other.base.sha256 == segmenter.base.sha256 and other.base.side != segmenter.base.side
    segmenter.set_volume(volume)
    other.cache = segmenter.cache
    for each in (other, alone):
        each.set_volume(volume)
    assert np.array_equal(other.segment("brain").probability, alone.segment("brain").probability)


def test_where_the_model_itself_does_not_fit_the_cpu_takes_over(tiny_base, volume, monkeypatch, caplog):
    def place(base, folder, card, device, dtype):
        if device.type == "meta":
            raise torch.OutOfMemoryError
        return place_model(base, folder, card, device, dtype)

    monkeypatch.setattr("engine.segmentation.segmenter.choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr("engine.segmentation.segmenter.place_model", place)
    segmenter = Segmenter(base=str(tiny_base), precision="fp32")
    assert "going on with the CPU" in caplog.text and segmenter.device.type == "cpu"
    segmenter.set_volume(volume)
    assert segmenter.segment("brain").probability.any()


def test_memory_that_does_not_hold_one_slice_on_the_cpu_is_a_clear_error(segmenter, volume, monkeypatch):
    def activations(pixel_values):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(segmenter.model, "activations", activations)
    with pytest.raises(UserError, match="not enough memory"):
        segmenter.set_volume(volume)


@pytest.mark.parametrize(
    "call",
    [
        lambda: choose_device("tpu"),
        lambda: choose_dtype("int4", torch.device("cpu")),
        lambda: choose_batch_size("0", 1, torch.device("cpu")),
    ],
)
def test_unknown_devices_precisions_and_batch_sizes_are_refused(call):
    with pytest.raises(UserError):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no cuda device"):
        choose_device("cuda")


def test_a_tiny_threshold_does_not_take_everything(segmenter, volume):
    segmenter.set_volume(volume)
    result = segmenter.segment("brain")
    object.__setattr__(result, "presence_threshold", 0.0)
    assert not result.mask(1e-9)[0].any()  # empty air
    assert result.mask(0.99999).mean() < 1


def test_after_a_volume_that_failed_no_prompt_is_answered_for_the_one_before(segmenter, volume):
    segmenter.set_volume(volume)
    with pytest.raises(UserError):
        segmenter.set_volume(volume, plane="up")
    with pytest.raises(UserError, match="no volume"):
        segmenter.segment("brain")


def test_memory_that_runs_out_on_the_cpu_is_known_by_its_words():
    def run(part):
        if part.stop - part.start > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    assert in_batches(run, 4, 4) == 1
    with pytest.raises(RuntimeError, match="a bug"):
        in_batches(lambda part: (_ for _ in ()).throw(RuntimeError("a bug")), 2, 2)
