"""The set-up page, and what the panel remembers, on a Qt stand-in, with a real engine and Slicer's own MRML."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import qt_stand_in
from conftest import SHIPPED_ADAPTERS, files, make_adapter, own_folder
from harness import MODULE, add_volume, make_models, open_scene, slicer, util, warm_engine
from test_module_panel import until
from VLSMSegmenterLib.shared import dependencies
from VLSMSegmenterLib.shared.words import modality_warning

SHAPE = (4, 20, 24)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_base):
    return make_models(tmp_path_factory.mktemp("models"), tiny_base)


@pytest.fixture(scope="module")
def engine(models):
    with warm_engine(models) as engine:
        yield engine


@pytest.fixture
def scene(tmp_path, monkeypatch, models):
    qt_stand_in.install(monkeypatch)
    settings = qt_stand_in.QtCore.QSettings
    settings.setPath(settings.NativeFormat, settings.UserScope, str(tmp_path))
    with open_scene(tmp_path) as scene, own_folder(models):
        yield scene


@pytest.fixture
def new_panel(scene, engine):
    """Return a function that opens the panel; the engine is not asked unless `enter` is called."""
    from VLSMSegmenterLib.panel.panel import Panel
    from VLSMSegmenterLib.shared.logic import SegmenterLogic

    opened = []

    def make():
        opened.append(Panel(SegmenterLogic(engine), str(MODULE / "Resources/UI/VLSMSegmenter.ui")))
        opened[-1].widget.show()
        return opened[-1]

    yield make
    for panel in opened:
        panel.remembered.close()
        panel.widget.close()


@pytest.fixture
def panel(new_panel):
    add_volume(np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.int16))
    panel = new_panel()
    asked(panel)
    return panel


@pytest.fixture
def answers(monkeypatch):
    """Answer Slicer's questions: the texts that were asked, and what is answered."""
    answer = {"yes": True, "questions": []}

    def ask(text, **options):
        answer["questions"].append(text)
        return answer["yes"]

    monkeypatch.setattr(util, "confirmOkCancelDisplay", ask)
    return answer


def asked(panel) -> None:
    panel.refresh()
    until(lambda: panel._asking is None)


def click(button, label) -> str:
    """Click, wait for what happens in the background, and return what is said."""
    button.click()
    until(lambda: "moment" not in label.text)
    return label.text


def names(panel) -> list[str]:
    table = panel.ui.adapterTable
    return [table.item(row, 0).text() for row in range(table.rowCount)]


def test_what_this_python_has_and_sees_is_said(panel):
    said = click(panel.ui.checkButton, panel.ui.setupLabel)
    assert "torch 2." in said and "Everything that the engine needs is there." in said and "no GPU" in said
    assert click(panel.ui.installButton, panel.ui.setupLabel) == said  # nothing to install, so nothing is asked


def test_what_is_missing_is_installed_only_once_the_user_agrees(panel, answers, monkeypatch):
    lacking = dependencies.Package("no_such_module", "no-such-package>=1.0", 7)
    done = []
    monkeypatch.setattr("VLSMSegmenterLib.shared.engines.PACKAGES", (*dependencies.PACKAGES, lacking))
    monkeypatch.setattr(dependencies, "PACKAGES", (*dependencies.PACKAGES, lacking))
    monkeypatch.setattr(util, "pip_install", done.append)  # the outermost edge
    monkeypatch.setattr(panel.logic.engine, "stop", lambda: None)  # the other tests need it

    assert "no-such-package>=1.0 (about 7 MB)" in click(panel.ui.checkButton, panel.ui.setupLabel)
    answers["yes"] = False
    assert click(panel.ui.installButton, panel.ui.setupLabel) == "Nothing has been installed."
    assert done == [] and "In all about 7 MB to download" in answers["questions"][0]
    answers["yes"] = True
    assert click(panel.ui.installButton, panel.ui.setupLabel) == "Installed no-such-package."
    assert done[0][:2] == ["no-such-package>=1.0", "--constraint"]
    until(lambda: panel._asking is None)


def test_another_python_is_not_changed_but_its_command_is_said(panel, answers, monkeypatch, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    panel.ui.pythonEdit.setText(python)
    said = click(panel.ui.installButton, panel.ui.setupLabel)
    assert f'"{python}" -m pip install "torch>=2.10" "transformers>=5.0"' in said and answers["questions"] == []
    panel.ui.pythonEdit.setText("/no/python")
    assert "choose another" in click(panel.ui.checkButton, panel.ui.setupLabel)


def test_where_the_engine_runs_comes_back_without_the_token(panel, new_panel, monkeypatch):
    monkeypatch.setattr(panel.logic.engine, "stop", lambda: None)
    monkeypatch.setattr(panel.setup, "_on_changed", lambda: None)
    panel.ui.deviceBox.setCurrentIndex(3)
    assert panel.logic.engine._server._arguments == ["--device", "cpu"]
    panel.ui.pythonEdit.setText("/some/python")
    panel.ui.pythonEdit.editingFinished.emit()
    again = new_panel()
    assert again.ui.localButton.checked and again.ui.deviceBox.currentText == "CPU"
    assert again.logic.engine.python == "/some/python" and again.logic.engine._server._arguments[-1] == "cpu"

    panel.ui.urlEdit.setText("http://127.0.0.1:9")
    panel.ui.tokenEdit.setText("a-secret-of-the-server")
    panel.ui.remoteButton.setChecked(True)
    again = new_panel()
    assert again.ui.remoteButton.checked and again.logic.engine.describe() == "http://127.0.0.1:9"
    assert again.ui.tokenEdit.text == "" and again.ui.remotePart.visible


def test_adapters_are_listed_with_method_data_and_dice(panel):
    assert names(panel) == sorted(["head", "strict", *SHIPPED_ADAPTERS])
    table = panel.ui.adapterTable
    row = names(panel).index("head")
    assert [table.item(row, column).text() for column in (1, 2, 3)] == ["dense VL", "0.51", "one ball"]
    removable = []
    for row, name in enumerate(names(panel)):
        table.selectRow(row)
        removable += [name] * panel.ui.removeButton.enabled
    assert removable == ["head", "strict"]  # the others are shipped


def test_an_adapter_is_installed_shown_and_removed(panel, answers, models, tmp_path, tiny_base, monkeypatch):
    ui = panel.ui
    make_adapter(tmp_path / "nodule", tiny_base, licence="CC BY 4.0")
    archive = shutil.make_archive(str(tmp_path / "nodule"), "zip", tmp_path, "nodule")
    dialog = qt_stand_in.QtWidgets.QFileDialog
    monkeypatch.setattr(dialog, "getOpenFileName", lambda *arguments: (archive, ""))

    answers["yes"] = False
    ui.addZipButton.click()
    until(lambda: ui.adapterLabel.text == "Nothing was installed.")
    assert not (models / "nodule").exists() and "Licence: CC BY 4.0" in answers["questions"][0]
    answers["yes"] = True
    ui.addZipButton.click()
    until(lambda: ui.adapterLabel.text.startswith("installed nodule"))
    until(lambda: "nodule" in names(panel))
    assert files(models / "nodule") == files(tmp_path / "nodule")
    assert "nodule" in [ui.adapterBox.itemText(number) for number in range(ui.adapterBox.count)]

    ui.adapterTable.selectRow(names(panel).index("nodule"))
    ui.removeButton.click()
    until(lambda: "nodule" not in names(panel))
    assert ui.adapterLabel.text.startswith("removed") and not (models / "nodule").exists()
    assert "cannot be undone" in answers["questions"][-1]


def test_an_adapter_of_the_hub_is_asked_for_by_its_name(panel, answers, monkeypatch):
    names = iter([("clinic/nodule", True), ("no repository", True), ("", False)])
    monkeypatch.setattr(qt_stand_in.QtWidgets.QInputDialog, "getText", lambda *arguments: next(names))
    said = click(panel.ui.addHubButton, panel.ui.adapterLabel)
    assert "hf:clinic/nodule cannot be fetched" in said and "was not fetched before" in said
    assert "names no repository" in click(panel.ui.addHubButton, panel.ui.adapterLabel)
    panel.ui.addHubButton.click()  # and cancelled
    assert answers["questions"] == []


def test_adapters_of_a_server_are_shown_but_not_changed(panel):
    panel.setup._adapters.show(panel.logic.engine.client().adapters(), local=False)
    assert names(panel) == sorted(["head", "strict", *SHIPPED_ADAPTERS])
    panel.ui.adapterTable.selectRow(0)
    assert not any(getattr(panel.ui, name).enabled for name in ("addFolderButton", "verifyButton", "removeButton"))
    assert "own machine" in panel.ui.adapterLabel.text


@pytest.mark.parametrize(
    ("wanted", "seen", "in_colour", "warns"),
    [
        ("MR", "CT", False, "for MR, and this volume is CT"),
        ("MR", "MR", False, ""),
        ("CR", "DX", False, ""),
        ("", "CT", False, ""),
        ("MR", None, False, ""),  # nobody can tell
        ("MR", None, True, "is in colour"),
        ("US", None, True, ""),
        ("RGB", None, True, ""),
        ("RGB", "ES", True, ""),
        ("RGB", None, False, "is grey"),
        ("RGB", "CT", False, "is CT"),
    ],
)
def test_a_volume_of_another_kind_than_the_adapters_is_warned_of(wanted, seen, in_colour, warns):
    warning = modality_warning(wanted, seen, in_colour)
    assert warns in warning and bool(warning) == bool(warns)


def test_the_warning_stands_under_the_card_and_refuses_nothing(panel):
    ui = panel.ui
    ui.adapterBox.setCurrentText("head-t1")
    ui.promptEdit.setPlainText("brain")
    assert "for MR" in ui.cardLabel.text and "do not trust" not in ui.cardLabel.text
    picture = np.random.default_rng(0).integers(0, 255, (1, 20, 24, 3)).astype(np.uint8)
    ui.volumeSelector.setMRMLScene(slicer.mrmlScene)
    ui.volumeSelector.setCurrentNode(add_volume(picture, name="photo"))
    assert "this volume is in colour: do not trust" in ui.cardLabel.text
    assert ui.segmentButton.enabled


def test_what_is_chosen_is_saved_with_the_scene_and_comes_back(panel, scene, tmp_path):
    ui, volume = panel.ui, panel.ui.volumeSelector.currentNode()
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    ui.roiSelector.setCurrentNode(roi)
    ui.segmentationSelector.setCurrentNode(segmentation)
    ui.promptEdit.setPlainText('left lung\nHirn 脑; "quoted" <b> | & %20')
    ui.adapterBox.setCurrentText("strict")
    ui.planeBox.setCurrentText("coronal")
    ui.windowBox.setEditText("40,400")
    ui.thresholdSlider.setValue(37)
    ui.largestBox.setChecked(True)
    chosen = ui.promptEdit.plainText
    save(scene, tmp_path, volume)

    scene.Clear(0)
    ui.volumeSelector.setMRMLScene(scene)
    ui.promptEdit.setPlainText("something else")
    ui.adapterBox.setCurrentText("head")
    ui.planeBox.setCurrentIndex(0)
    ui.windowBox.setEditText("lung")
    ui.thresholdSlider.setValue(80)
    ui.largestBox.setChecked(False)
    assert scene.Connect()

    assert ui.volumeSelector.currentNode().GetName() == "scan"
    assert ui.roiSelector.currentNode().GetName() == "box"
    assert ui.segmentationSelector.currentNode().GetName() == "mine"
    assert ui.promptEdit.plainText == chosen
    assert (ui.adapterBox.currentText, ui.planeBox.currentText, ui.windowBox.currentText) == (
        "strict",
        "coronal",
        "40,400",
    )
    assert ui.thresholdSlider.value == 37 and ui.thresholdLabel.text == "0.37"
    assert ui.largestBox.checked and not ui.holesBox.checked
    assert scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 1


def save(scene, folder, volume) -> None:
    volume.AddDefaultStorageNode()
    volume.GetStorageNode().SetFileName(str(folder / "scan.nrrd"))
    assert volume.GetStorageNode().WriteData(volume)
    scene.SetURL(str(folder / "scene.mrml"))
    scene.SetRootDirectory(str(folder))
    assert scene.Commit()


def test_an_adapter_of_a_scene_is_chosen_once_the_engine_has_said_what_it_has(panel, new_panel):
    panel.ui.adapterBox.setCurrentText("strict")
    later = new_panel()  # in the same scene
    assert later.ui.adapterBox.count == 1
    asked(later)
    assert later.ui.adapterBox.currentText == "strict"


def test_the_last_adapter_comes_back_in_a_new_scene(panel, new_panel, scene):
    panel.ui.adapterBox.setCurrentText("strict")
    scene.Clear(1)
    later = new_panel()
    asked(later)
    assert later.ui.adapterBox.currentText == "strict"


def test_parameters_survive_an_mrb_file(panel, scene, tmp_path):
    from VLSMSegmenterLib.panel import parameters

    panel.ui.promptEdit.setPlainText("brain\nliver")
    cache, manager = slicer.vtkCacheManager(), slicer.vtkDataIOManager()  # the application has these
    cache.SetRemoteCacheDirectory(str(tmp_path))
    manager.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    path = tmp_path / "study.mrb"
    assert scene.WriteToMRB(str(path))
    scene.Clear(1)
    assert parameters.read(scene) == {}
    assert scene.ReadFromMRB(str(path))
    values = parameters.read(scene)
    assert values["prompts"] == "brain\nliver" and values["volume"].GetName() == "scan"
