"""The panel on a Qt stand-in over PySide6 (not Slicer itself), with a real engine and Slicer's own MRML."""

import time

import numpy as np
import pytest
import qt_stand_in
from conftest import PATIENCE_SECONDS, ball, own_folder
from harness import MODULE, add_volume, ids_by_name, make_models, mask_of, open_scene, slicer, warm_engine

from engine.imaging.volumes import intensity

SHAPE = (6, 40, 48)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_base):
    return make_models(tmp_path_factory.mktemp("panel") / "models", tiny_base)


@pytest.fixture(scope="module")
def engine(models):
    with warm_engine(models) as engine:
        yield engine


@pytest.fixture
def panel(tmp_path, engine, monkeypatch):
    """The panel with a scan, after it has asked the engine what it has."""
    qt_stand_in.install(monkeypatch)
    settings = qt_stand_in.QtCore.QSettings
    settings.setPath(settings.NativeFormat, settings.UserScope, str(tmp_path))
    with open_scene(tmp_path):
        from VLSMSegmenterLib.panel.panel import Panel
        from VLSMSegmenterLib.shared.logic import SegmenterLogic

        voxels = np.random.default_rng(0).normal(100, 30, SHAPE)
        voxels[ball(SHAPE, (3, 18, 20), 9)] += 400
        add_volume(voxels.astype(np.int16))
        panel = Panel(SegmenterLogic(engine), str(MODULE / "Resources/UI/VLSMSegmenter.ui"))
        panel.widget.show()
        panel.enter()
        until(lambda: panel._asking is None)
        panel.ui.adapterBox.setCurrentText("head")
        yield panel
        panel.widget.close()


def until(condition) -> None:
    """Let Qt work until something is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come"
        qt_stand_in.application.processEvents()
        time.sleep(0.01)


def segment(panel, prompts: str):
    panel.ui.promptEdit.setPlainText(prompts)
    panel.ui.segmentButton.click()
    until(lambda: not panel.logic.is_busy)
    return panel.segmentation


def cells(panel) -> list[list[str]]:
    table = panel.ui.table
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]


def test_the_adapters_card_and_prompts_are_shown(panel):
    assert panel.ui.statusLabel.text == "ready, on CPU"
    assert panel.ui.adapterBox.currentText == "head"
    assert "one ball" in panel.ui.cardLabel.text and "Dice 0.51 on its test split" in panel.ui.cardLabel.text
    for index in (2, 1, 2):
        panel.ui.suggestionBox.setCurrentIndex(index)
        panel.ui.suggestionBox.activated.emit(index)
    assert panel.ui.promptEdit.plainText == "left lung\nbrain"
    panel.ui.adapterBox.setCurrentIndex(0)
    assert panel.ui.cardLabel.text == "" and not panel.ui.suggestionBox.visible


def test_prompts_that_were_used_are_offered_again_after_the_adapters_own(panel):
    segment(panel, "brain; a rare thing")
    box = panel.ui.suggestionBox
    offered = [box.itemText(index) for index in range(1, box.count)]
    assert offered[-1] == "a rare thing" and offered.count("brain") == 1
    panel.ui.adapterBox.setCurrentIndex(0)
    assert [box.itemText(index) for index in range(1, box.count)] == ["brain", "a rare thing"]


def test_only_the_last_prompts_are_kept_and_broken_settings_are_none(panel):
    import qt
    from VLSMSegmenterLib.panel import history
    from VLSMSegmenterLib.shared import words

    history.remember([f"prompt {number}" for number in range(30)])
    history.remember(["prompt 3"])
    assert (
        history.recent()[:3] == ["prompt 3", "prompt 0", "prompt 1"] and len(history.recent()) == words.MOST_RECENT
    )
    for broken in ("{", '{"a": 1}', "[1]"):
        qt.QSettings().setValue(history.KEY, broken)
        assert history.recent() == []


def test_segment_is_possible_with_a_volume_and_a_prompt_only(panel):
    assert not panel.ui.segmentButton.enabled
    panel.ui.promptEdit.setPlainText("brain")
    assert panel.ui.segmentButton.enabled
    panel.ui.volumeSelector.setCurrentIndex(-1)
    assert not panel.ui.segmentButton.enabled


def test_a_click_makes_segments_a_table_and_words(panel):
    panel.ui.promptEdit.setPlainText("brain; left lung")
    panel.ui.segmentButton.click()
    assert panel.ui.segmentButton.text == "Cancel" and panel.ui.progressBar.visible
    until(lambda: not panel.logic.is_busy)
    assert panel.ui.segmentButton.text == "Segment" and not panel.ui.progressBar.visible
    assert [row[0] for row in cells(panel)] == ["brain", "left lung"] == list(ids_by_name(panel.segmentation))
    assert panel.ui.statusLabel.text.startswith("brain: ")
    assert panel.ui.thresholdSlider.value == 30  # the adapter's own


def test_the_slider_moves_the_segments(panel):
    node = segment(panel, "brain")
    volume = panel.ui.volumeSelector.currentNode()
    sizes = []
    for value in (1, 99):
        panel.ui.thresholdSlider.setValue(value)
        until(lambda: not panel._settle.isActive())
        sizes.append(mask_of(node, "brain", volume).sum())
        assert node.GetSegmentation().GetSegment("brain") and panel.ui.thresholdLabel.text == f"0.{value:02d}"
    assert sizes[0] > sizes[1]


def test_a_prompt_run_again_replaces_only_when_that_is_chosen(panel):
    node = segment(panel, "brain")
    panel.ui.segmentButton.click()
    assert panel.ui.againRow.visible and "brain" in panel.ui.againLabel.text and not panel.logic.is_busy
    panel.ui.backButton.click()
    assert not panel.ui.againRow.visible and panel.ui.segmentButton.visible
    for button, names in ((panel.ui.replaceButton, ["brain"]), (panel.ui.keepButton, ["brain", "brain (2)"])):
        panel.ui.segmentButton.click()
        button.click()
        until(lambda: not panel.logic.is_busy)
        assert list(ids_by_name(node)) == names
    panel.ui.undoButton.click()
    assert list(ids_by_name(node)) == ["brain"] == [row[0] for row in cells(panel)]


@pytest.mark.parametrize("is_computed", [False, True])
def test_cancel_is_where_segment_was_also_once_all_is_computed_but_not_yet_written(panel, is_computed):
    panel.ui.promptEdit.setPlainText("brain")
    panel.ui.segmentButton.click()
    if is_computed:  # and Qt, which would have it written, is not let work meanwhile
        assert panel.logic.job._ended.wait(PATIENCE_SECONDS)
    panel.ui.segmentButton.click()
    assert panel.ui.statusLabel.text == "cancelling …"
    until(lambda: not panel.logic.is_busy)
    assert panel.ui.statusLabel.text == "cancelled" and panel.ui.segmentButton.text == "Segment"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_every_window_of_the_engine_that_a_name_tells_is_offered(panel):
    names = set(intensity.CHOICES) - {
        "file",
        "center,width",
    }  # the scene has no file; numbers are typed
    missing = {name for name in names if panel.ui.windowBox.findText(name) < 0}
    assert not missing and panel.ui.windowBox.isEditable()


def test_what_goes_wrong_is_said_and_the_panel_goes_on(panel):
    panel.ui.windowBox.setEditText("nonsense")
    segment(panel, "brain")
    assert "nonsense" in panel.ui.statusLabel.text and panel.ui.segmentButton.enabled
    panel.ui.windowBox.setCurrentIndex(0)
    assert segment(panel, "brain") is not None


def test_the_probability_comes_into_the_scene(panel):
    segment(panel, "brain")
    panel.ui.probabilityButton.click()
    assert slicer.util.getNode("brain probability")


def test_a_server_elsewhere_is_tested_and_used(panel):
    client, ui = panel.logic.engine.client(), panel.ui
    ui.remoteButton.setChecked(True)
    ui.urlEdit.setText(client.url)
    ui.tokenEdit.setText("wrong")
    ui.testButton.click()
    until(lambda: "moment" not in ui.setupLabel.text)
    assert "token" in ui.setupLabel.text
    panel.logic.engine.stop = lambda: None  # the other tests need it
    ui.tokenEdit.setText(client._token)
    ui.testButton.click()
    until(lambda: "moment" not in ui.setupLabel.text)
    assert ui.setupLabel.text.startswith("The server answers")
    ui.tokenEdit.editingFinished.emit()
    until(lambda: panel._asking is None)
    assert panel.logic.engine.describe() == client.url
    assert segment(panel, "brain") is not None


def add_pair(panel, name: str, prompt: str) -> None:
    """Add a volume with one segment to the scene, and choose it for training."""
    from VLSMSegmenterLib.shared import segmentations
    from VLSMSegmenterLib.shared.volumes import grid_of

    volume = add_volume(
        np.random.default_rng(list(name.encode())).integers(0, 99, SHAPE).astype(np.int16), name=name
    )
    node = segmentations.prepare(volume, None)
    if prompt:
        identifier = segmentations.add_segment(node, prompt, (1, 0, 0))
        segmentations.write_mask(node, identifier, ball(SHAPE, (3, 18, 20), 9), grid_of(volume))
    panel.widget.setMRMLScene(slicer.mrmlScene)
    panel.ui.trainVolumeSelector.setCurrentNode(volume)
    assert panel.ui.trainSegmentationSelector.currentNode() is node
    panel.ui.addPairButton.click()


def pair_rows(panel) -> list[list[str]]:
    table = panel.ui.pairTable
    return [[table.item(row, column).text() for column in range(2)] for row in range(table.rowCount)]


def test_volumes_are_added_to_a_training_and_removed(panel):
    ui = panel.ui
    add_pair(panel, "bare", "")
    assert "has no segments" in ui.trainLabel.text and pair_rows(panel) == []
    add_pair(panel, "first", "ball")
    add_pair(panel, "second", "bright ball")
    ui.addPairButton.click()  # a volume is there once
    assert pair_rows(panel) == [["first", "ball"], ["second", "bright ball"]]
    assert not ui.removePairButton.enabled and not ui.trainButton.enabled
    ui.trainNameEdit.setText("mine")
    assert ui.trainButton.enabled and not ui.resumeButton.enabled
    ui.pairTable.selectRow(0)
    assert ui.removePairButton.enabled
    ui.removePairButton.click()
    assert pair_rows(panel) == [["second", "bright ball"]]
    ui.trainButton.click()
    assert "two labelled volumes" in ui.trainLabel.text and not panel.training.training.is_busy


def test_a_training_shows_its_curves_and_its_adapter_comes_into_the_picker(panel, models):
    ui = panel.ui
    for number in range(2):
        add_pair(panel, f"scan {number}", "ball")
    ui.trainBaseBox.setCurrentText("tiny")
    ui.trainEpochsBox.setValue(2)
    with own_folder(models):
        ui.trainNameEdit.setText("head")
        ui.trainButton.click()
        assert ui.takenRow.visible and "'head'" in ui.takenLabel.text and not panel.training.training.is_busy
        ui.keepAdapterButton.click()
        assert not ui.takenRow.visible
        ui.trainNameEdit.setText("mine")
        ui.trainButton.click()
        assert ui.trainButton.text == "Stop" and not ui.trainNameEdit.enabled
        until(lambda: not panel.training.training.is_busy)
        assert ui.trainLabel.text == "mine is trained, and is among the adapters"
        assert ui.trainButton.text == "Train" and ui.resumeButton.enabled and not ui.curveLabel.pixmap.isNull()
    until(lambda: panel._asking is None)
    assert "mine" in [ui.adapterBox.itemText(number) for number in range(ui.adapterBox.count)]


def test_smoothing_is_a_box_that_is_ticked(panel):
    node = segment(panel, "brain")
    panel.ui.smoothBox.click()
    from VLSMSegmenterLib.shared import segmentations

    assert segmentations.tags_of(node, "brain")[segmentations.CLEAN_UP] == "smoothed"
