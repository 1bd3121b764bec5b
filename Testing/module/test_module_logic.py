"""The logic with a real server on loopback and Slicer's own MRML: from a volume node to segments and back."""

import os
import signal

import numpy as np
import pytest
from conftest import PATIENCE_SECONDS, ball, own_folder, wait_until
from harness import (
    DIRECTIONS,
    add_transform,
    add_volume,
    ids_by_name,
    make_models,
    mask_of,
    open_scene,
    slicer,
    util,
    vtk,
    warm_engine,
)
from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.engines import LocalEngine, RemoteEngine
from VLSMSegmenterLib.shared.findings import Request
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.volumes import SPACING_UNKNOWN, Grid, grid_of, voxels_of
from VLSMSegmenterLib.shared.words import duration, number, progress, size, split_prompts

from engine import Segmenter
from engine.errors import Cancelled, UserError
from engine.imaging.volumes.segments import fill_holes, keep_largest, smooth
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base

SHAPE = (6, 40, 48)
SHIFT = np.array([[0.0, -1, 0, 15], [1, 0, 0, -7], [0, 0, 1, 100], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_base):
    return make_models(tmp_path_factory.mktemp("models"), tiny_base)


@pytest.fixture(scope="module")
def engine(models):
    """A process with the tiny models, warm for all tests of this file."""
    with warm_engine(models) as engine:
        yield engine


@pytest.fixture
def scene(tmp_path):
    with open_scene(tmp_path) as scene:
        yield scene


@pytest.fixture
def logic(engine):
    return SegmenterLogic(engine)


@pytest.fixture
def volume(scene):
    voxels = np.random.default_rng(0).normal(100, 30, SHAPE)
    voxels[ball(SHAPE, (3, 18, 20), 9)] += 400
    return add_volume(voxels.astype(np.int16))


def own_answer(models, volume, prompt, **options):
    """Return what the engine itself says of a volume node's voxels."""
    with own_folder(models):
        segmenter = Segmenter("head", device="cpu")
        grid = grid_of(volume)
        segmenter.set_volume(Volume(voxels_of(volume), grid.spacing_mm, grid.origin_lps, grid.direction_lps))
        return segmenter.segment(prompt, **options)


def median(finding):
    """Return a threshold at which about half of the voxels are in."""
    return (np.median(finding.result.probability) + 0.5) / 256


def test_segments_are_what_the_engine_itself_finds(logic, volume, models):
    said = []
    node = logic.segment(
        volume, "brain; left lung", "head", threshold=0.1, on_progress=lambda *news: said.append(news)
    )
    ids = ids_by_name(node)
    assert list(ids) == ["brain", "left lung"]
    for name, identifier in ids.items():
        expected = own_answer(models, volume, name).mask(0.1)
        assert np.array_equal(mask_of(node, identifier, volume), expected)
        assert expected.any()
    assert {event["state"] for _, event in said} >= {"starting", "encoding", "decoding"}
    assert logic.status.startswith("brain: ") and "presence" in logic.status and "on CPU" in logic.status


def test_segments_carry_prompt_adapter_hash_and_threshold(logic, volume):
    node = logic.segment(volume, ["brain"], "head")
    (finding,) = logic.findings(node)
    tags = segmentations.tags_of(node, finding.segment_id)
    assert tags[segmentations.PROMPT] == "brain"
    card = next(card for card in logic.engine.client().adapters() if card["name"] == "head")
    assert tags[segmentations.ADAPTER] == f"head {card['sha256'][:12]}"
    assert tags[segmentations.BASE].endswith(card["base_sha256"][:12])
    assert tags[segmentations.THRESHOLD] == "0.3"  # the adapter's own
    assert float(tags[segmentations.PRESENCE]) == pytest.approx(finding.result.presence, abs=1e-3)
    logic.adjust(node, threshold=0.7, largest_only=True)
    tags = segmentations.tags_of(node, finding.segment_id)
    assert (tags[segmentations.THRESHOLD], tags[segmentations.CLEAN_UP]) == ("0.7", "largest only")


def test_segments_carry_the_bases_hash_also_where_no_adapter_was_used(logic, volume):
    node = logic.segment(volume, ["brain"], base="mini")
    tags = segmentations.tags_of(node, logic.findings(node)[0].segment_id)
    assert tags[segmentations.ADAPTER] == "none"
    assert tags[segmentations.BASE] == f"mini {open_base('mini').sha256[:12]}"


def test_a_colour_belongs_to_its_prompt(logic, volume):
    node = logic.segment(volume, "brain; left lung", "head")
    first = {name: node.GetSegmentation().GetSegment(i).GetColor() for name, i in ids_by_name(node).items()}
    slicer.mrmlScene.RemoveNode(node)
    node = logic.segment(volume, "brain", "head")
    again = {name: node.GetSegmentation().GetSegment(i).GetColor() for name, i in ids_by_name(node).items()}
    assert again["brain"] == first["brain"] != first["left lung"]


def test_a_prompt_run_again_gets_a_segment_of_its_own_unless_it_is_to_replace(logic, volume):
    node = logic.segment(volume, "brain", "head", threshold=0.5)
    mine = segmentations.add_segment(node, "left lung", (0, 0, 1))  # drawn by hand: of that name, but no result
    drawn = ball(SHAPE, (2, 10, 10), 4)
    segmentations.write_mask(node, mine, drawn, grid_of(volume))
    assert logic.already_there(volume, "Brain; left lung") == ["Brain"]

    assert logic.segment(volume, "brain; left lung", "head") is node
    assert set(ids_by_name(node)) == {"brain", "left lung", "brain (2)", "left lung (2)"}
    count = len(segmentations.segment_ids(node))
    logic.segment(volume, "brain", "head", threshold=0.9, replace=True)
    assert len(segmentations.segment_ids(node)) == count
    assert np.array_equal(mask_of(node, mine, volume), drawn)


def test_undo_takes_back_the_last_run_and_nothing_else(logic, volume):
    node = logic.segment(volume, "brain", "head")
    brain = ids_by_name(node)["brain"]
    logic.adjust(node, median(logic.findings(node)[0]))
    before, tags = mask_of(node, brain, volume), segmentations.tags_of(node, brain)
    assert 0 < before.mean() < 1
    mine = segmentations.add_segment(node, "mine", (0, 0, 1))
    logic.segment(volume, "brain; left lung", "head", threshold=0.95, replace=True)
    segmentations.write_mask(node, mine, ball(SHAPE, (2, 10, 10), 4), grid_of(volume))  # after the run
    assert not np.array_equal(mask_of(node, brain, volume), before)

    logic.undo()
    assert set(ids_by_name(node)) == {"brain", "mine"}
    assert np.array_equal(mask_of(node, brain, volume), before)
    assert segmentations.tags_of(node, brain) == tags
    assert np.array_equal(mask_of(node, mine, volume), ball(SHAPE, (2, 10, 10), 4))
    logic.undo()
    assert set(ids_by_name(node)) == {"mine"}
    assert not logic.can_undo


def test_undoing_the_first_run_removes_the_segmentation_that_it_made(logic, volume, scene):
    logic.segment(volume, "brain", "head")
    logic.undo()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_what_is_not_found_is_said_and_makes_an_empty_segment(logic, volume):
    node = logic.segment(volume, "brain", "strict")
    (finding,) = logic.findings(node)
    assert logic.status == "brain: not found"
    assert not mask_of(node, finding.segment_id, volume).any()


def test_voxels_that_are_no_numbers_and_words_that_nobody_learned_are_said(logic, scene):
    voxels = np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32)
    voxels[2, 3, 4:9] = np.nan
    logic.segment(add_volume(voxels), "brain; мозг", "head")
    brain, foreign, *careful = logic.status.splitlines()
    assert brain.startswith("brain: ") and foreign.startswith("мозг: ") and len(careful) == 2
    assert careful[0].startswith("Careful: 5 voxels") and "does not know 'мозг'" in careful[1]


def test_a_threshold_that_nothing_reaches_is_said(logic, volume):
    node = logic.segment(volume, "brain", "head", threshold=0.99)
    assert not mask_of(node, ids_by_name(node)["brain"], volume).any()
    assert "nothing reaches the threshold 0.99" in logic.status


def test_thresholds_and_clean_up_need_no_engine(logic, volume):
    node = logic.segment(volume, "brain", "head")
    logic.engine = None
    (finding,) = logic.findings(node)
    threshold = median(finding)
    plain = finding.result.mask(threshold)
    for options, expected in (
        ({"threshold": threshold}, plain),
        ({"largest_only": True}, keep_largest(plain)),
        ({"holes_filled": True}, fill_holes(keep_largest(plain))),
        ({"largest_only": False, "holes_filled": False}, plain),
        ({"smoothed": True}, smooth(plain, grid_of(volume).spacing_mm)),
        ({"smoothed": False}, plain),
    ):
        assert logic.adjust(node, **options) == []
        assert np.array_equal(mask_of(node, finding.segment_id, volume), expected)
    assert 0 < keep_largest(plain).sum() < plain.sum()  # else nothing was shown
    with pytest.raises(UserError, match="between 0 and 1"):
        logic.adjust(node, 1.0)


def test_segments_that_were_edited_or_moved_by_hand_are_left_alone(logic, volume):
    node = logic.segment(volume, "brain; left lung", "head", threshold=0.99)
    edited = ball(SHAPE, (3, 20, 20), 5)
    segmentations.write_mask(node, ids_by_name(node)["brain"], edited, grid_of(volume))
    assert logic.adjust(node, 0.01) == ["brain"]
    assert np.array_equal(mask_of(node, ids_by_name(node)["brain"], volume), edited)
    assert mask_of(node, ids_by_name(node)["left lung"], volume).any()
    node.SetAndObserveTransformNodeID(add_transform(SHIFT).GetID())
    node.HardenTransform()
    assert logic.adjust(node, 0.5) == ["brain", "left lung"]


def test_the_probability_comes_as_a_volume_on_the_same_grid(logic, volume):
    volume.SetAndObserveTransformNodeID(add_transform(SHIFT).GetID())
    node = logic.segment(volume, "brain", "head")
    identifier = ids_by_name(node)["brain"]
    probability = logic.add_probability_volume(node, identifier)
    assert grid_of(probability) == grid_of(volume)
    assert probability.GetParentTransformNode() is volume.GetParentTransformNode()
    values = util.arrayFromVolume(probability)
    logic.adjust(node, 0.75)
    assert np.array_equal(values >= 0.75, mask_of(node, identifier, volume))
    logic.undo()
    with pytest.raises(UserError, match="segment its prompt again"):
        logic.add_probability_volume(node, identifier)


def test_a_region_of_interest_bounds_the_segment(logic, volume, models):
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    middle = (grid_of(volume).ijk_to_ras @ [24, 20, 3, 1])[:3]
    roi.SetCenter(*middle)
    roi.SetSize(12, 14, 9)
    node = logic.segment(volume, "brain", "head", threshold=0.01, roi=roi)
    (finding,) = logic.findings(node)
    mask = mask_of(node, finding.segment_id, volume)
    inside = np.zeros(SHAPE, bool)
    inside[finding.box] = True
    assert mask.any() and not (mask & ~inside).any()
    assert np.array_equal(mask[finding.box], finding.result.mask(0.01))


@pytest.mark.parametrize("axes", DIRECTIONS)
def test_a_region_gives_what_its_voxels_alone_give_where_they_lie(logic, scene, axes):
    """As when the voxels were cut out by hand: put where Slicer's own matrix places them, and segmented whole."""
    voxels = np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.int16)
    volume = add_volume(voxels, DIRECTIONS[axes])
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(*(grid_of(volume).ijk_to_ras @ [24, 20, 3, 1])[:3])
    roi.SetSize(11, 13, 9)
    node = logic.segment(volume, "brain", "head", threshold=0.05, roi=roi)
    (finding,) = logic.findings(node)
    assert np.prod(finding.result.probability.shape) < np.prod(SHAPE)
    seen = mask_of(node, finding.segment_id, volume)

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    matrix = util.arrayFromVTKMatrix(matrix)
    matrix[:3, 3] = (matrix @ [*(part.start for part in finding.box[::-1]), 1])[:3]
    cut = util.addVolumeFromArray(voxels[finding.box], matrix, "cut")
    alone = logic.segment(cut, "brain", "head", threshold=0.05)
    expected = np.zeros(SHAPE, bool)
    expected[finding.box] = mask_of(alone, ids_by_name(alone)["brain"], cut)
    assert expected.any() and np.array_equal(seen, expected)


def test_a_picture_in_colour_is_segmented(logic, scene):
    picture = np.random.default_rng(0).integers(0, 255, (1, 40, 50, 3)).astype(np.uint8)
    node = logic.segment(add_volume(picture, name="photo"), "brain", "head", threshold=0.05)
    assert "pixels" in logic.status
    assert node.GetName() == "photo segmentation"


def test_edited_voxels_are_sent_anew(logic, volume):
    node = logic.segment(volume, "brain", "head")
    util.arrayFromVolume(volume)[:3] = 0
    util.arrayFromVolumeModified(volume)
    logic.segment(volume, "brain", "head")
    first, second = logic.findings(node)
    assert not np.array_equal(first.result.probability, second.result.probability)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (" ; \n", {}, "there is no prompt"),
        ("brain", {"adapter": "nobody"}, "nobody"),
        ("brain", {"plane": "diagonal"}, "diagonal"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(logic, volume, scene, prompts, options, message):
    with pytest.raises(UserError, match=message):
        logic.segment(volume, prompts, **{"adapter": "head"} | options)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert not logic.is_busy and not logic.can_undo


def test_a_cancelled_job_writes_nothing_and_ends_before_all_its_slices_are_encoded(engine, scene, monkeypatch):
    """A hundred slices of this model take two seconds or more where nothing else runs."""
    logic, client, given = SegmenterLogic(engine), engine.client(), []
    put_volume = client.put_volume
    monkeypatch.setattr(client, "put_volume", lambda *a, **k: given.append(put_volume(*a, **k)) or given[-1])
    voxels = np.random.default_rng(0).integers(0, 200, (100, 64, 64)).astype(np.int16)

    def stop(text, event):
        if event["state"] == "encoding":
            logic.cancel()

    with pytest.raises(Cancelled):
        logic.segment(add_volume(voxels), "brain", "head-t1", plane="axial", on_progress=stop)
    wait_until(lambda: not client.health()["jobs"]["running"])
    (volume,) = given
    assert client._json("GET", f"/volumes/{volume.id}")["bytes"] == voxels.nbytes  # not all of it was encoded
    assert logic.status == "cancelled"
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    logic.segment(add_volume(np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)), "brain", "head")


def test_cancelling_at_the_first_news_does_not_stop_an_engine_that_is_warm(engine, volume, monkeypatch):
    stopped = []
    monkeypatch.setattr(engine, "stop", lambda: stopped.append(True))
    logic = SegmenterLogic(engine)
    with pytest.raises(Cancelled):
        logic.segment(volume, "brain", "head", on_progress=lambda text, event: logic.cancel())
    assert not stopped


def test_after_ctrl_c_in_a_console_another_segmentation_is_possible(engine, volume):
    logic = SegmenterLogic(engine)

    def interrupt(text, event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logic.segment(volume, "brain", "head", on_progress=interrupt)
    assert not logic.is_busy and logic.status == "cancelled"
    assert logic.segment(volume, "brain", "head") is not None


def test_a_callback_comes_in_the_thread_that_polls_and_a_second_job_is_refused(engine, volume):
    logic = SegmenterLogic(engine, follow=lambda job: None)
    ended = []
    job = logic.segment(volume, "brain", "head", on_done=ended.append)
    with pytest.raises(UserError, match="another segmentation is running"):
        logic.segment(volume, "brain", "head")
    assert job._ended.wait(PATIENCE_SECONDS)
    assert not ended  # nobody has polled yet
    job.wait()
    assert ended == [job] and job.error is None
    assert list(ids_by_name(job.value)) == ["brain"]


def test_a_volume_that_is_removed_meanwhile_is_said(engine, volume, scene):
    logic = SegmenterLogic(engine, follow=lambda job: None)
    job = logic.segment(volume, "brain", "head", on_done=lambda job: None)
    scene.RemoveNode(volume)
    job.wait()
    assert "removed meanwhile" in str(job.error) and logic.status == str(job.error)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_an_engine_that_dies_is_said_and_starts_again(engine, volume, models):
    logic = SegmenterLogic(engine)
    logic.segment(volume, "brain", "head")
    os.killpg(engine._server._process.pid, signal.SIGKILL)
    engine._server._process.wait()
    with own_folder(models):
        logic.segment(volume, "left lung", "head")  # the volume is sent anew
    assert logic.status.startswith("left lung: ")


def test_cancelling_while_the_engine_starts_ends_its_process_before_it_serves(volume):
    logic = SegmenterLogic(LocalEngine(arguments=("--device", "cpu")))
    pids = []

    def stop():
        process = logic.engine._server._process
        if process and not pids:
            pids.append(process.pid)
            logic.cancel()

    job = logic._start(volume, None, Request(("brain",)), None, lambda *news: None)
    job.wait(stop)
    assert isinstance(job.error, Cancelled) and logic.engine._server.url == ""
    with pytest.raises(ProcessLookupError):
        os.killpg(pids[0], 0)


def test_a_remote_server_serves_the_same_way(engine, volume):
    client = engine.client()
    logic = SegmenterLogic(RemoteEngine(f" {client.url} ", client._token + "\n"))
    node = logic.segment(volume, "brain", "head")
    assert list(ids_by_name(node)) == ["brain"]
    with pytest.raises(UserError, match="token"):
        RemoteEngine(client.url, "wrong").client()


def test_prompts_are_split_at_lines_and_semicolons():
    assert split_prompts(" left  lung;right lung\n\nliver; left lung ;") == ["left lung", "right lung", "liver"]


def test_sizes_and_times_are_said_as_people_say_them():
    assert [number(value) for value in (1423.4, 29.53, 3.456, 0.0642, 0)] == ["1 423", "29.5", "3.46", "0.064", "0"]
    assert size(2000, 0.001, flat=False) == "2.00 ml" and size(2000, 0.001, flat=True) == "2 000 pixels"
    assert size(2000, None, flat=False) == "2 000 voxels"
    assert [duration(value) for value in (4.12, 34.4, 125)] == ["4.1 s", "34 s", "2 min 5 s"]
    event = {"state": "encoding", "done": 72, "total": 280, "seconds_left": 2.4}
    assert progress(event) == "looking at slices: 72 of 280, about 3 s left"


@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_the_size_of_a_film_that_slicer_took_for_1_mm_is_said_in_voxels(logic, scene, spacing):
    film = slicer.util.addVolumeFromArray(
        np.random.default_rng(0).integers(0, 255, (3, 20, 24, 3), np.uint8),
        nodeClassName="vtkMRMLVectorVolumeNode",
    )
    film.SetSpacing(spacing, spacing, spacing)
    assert grid_of(film).spacing_known == (spacing != 1) and (grid_of(film).voxel_volume_ml is None) == (
        spacing == 1
    )
    node = logic.segment(film, "brain", "head", threshold=0.01)
    (finding,) = logic.findings(node)
    assert finding.voxels and finding.size.endswith("voxels" if spacing == 1 else "ml")
    assert finding.size in finding.describe()


def test_a_volume_whose_file_says_no_spacing_has_none_in_slicer(volume):
    assert grid_of(volume).spacing_known
    volume.SetAttribute(SPACING_UNKNOWN, "1")
    assert (
        grid_of(volume).voxel_volume_ml is None
        and grid_of(volume).cropped((slice(0, 1),) * 3).spacing_known is False
    )


@pytest.mark.parametrize("axes", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_grid_made_from_lps_is_the_one_that_gave_it(scene, axes):
    grid = grid_of(add_volume(np.zeros(SHAPE, np.int16), axes))
    assert Grid.from_lps(grid.shape, grid.spacing_mm, grid.origin_lps, grid.direction_lps) == grid
