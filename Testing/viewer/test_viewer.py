"""The page in a real Chromium, with the real engine and a real head."""

import base64
import zipfile

import numpy as np
import SimpleITK as sitk
from browsing import lies_like

PROMPTS = "brain; grey matter"
SLIDER = ".results [role=slider]"


def test_two_prompts_become_segments_whose_threshold_moves_and_are_saved_on_the_scans_grid(page, head, tmp_path):
    before = page.picture("axial"), page.picture("3-D")
    page.segment(PROMPTS)
    assert "brain: " in page.message and "presence" in page.message and "on CPU" in page.message
    made = page.voxels()
    assert list(made) == ["brain", "grey matter"] and made["brain"] > made["grey matter"] > 10_000
    page.tab.wait_for_timeout(2000)
    assert page.picture("axial") != before[0] and page.picture("3-D") != before[1]

    page.tab.focus(SLIDER)
    for _ in range(20):
        page.tab.press(SLIDER, "ArrowRight")
    page.wait(f"window.trame.state.get('segments')[0].voxels < {made['brain']}")
    page.wait("document.getElementById('threshold-value').innerText == 'Threshold 0.70'")
    page.wait("!window.trame.state.get('segments').some(s => s.voxels === null)")
    page.tab.wait_for_timeout(2000)
    moved = page.voxels()
    assert 0 < moved["brain"] < made["brain"] and 0 < moved["grey matter"] < made["grey matter"]

    scan = sitk.ReadImage(str(head))
    with zipfile.ZipFile(page.saved(".nii.gz", tmp_path)) as archive:
        archive.extractall(tmp_path)
    for number, (name, voxels) in enumerate(moved.items(), start=1):
        mask = sitk.ReadImage(str(tmp_path / f"head-{number}-{name.replace(' ', '-')}.nii.gz"))
        assert lies_like(mask, scan) and (sitk.GetArrayFromImage(mask) > 0).sum() == voxels
    segmentation = sitk.ReadImage(str(page.saved(".seg.nrrd", tmp_path)))
    assert lies_like(segmentation, scan)
    assert segmentation.GetMetaData("Segment0_Name") == "brain"
    assert "VLSMSegmenter.Threshold:0.7" in segmentation.GetMetaData("Segment0_Tags")
    assert "Brain" in segmentation.GetMetaData("Segment0_Tags")  # Slicer's terminology
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(page.saved(".png", tmp_path))))
    assert picture.std() > 10 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_escape_cancels_in_the_middle_and_nothing_is_written(page):
    page.set("plane", "sagittal")  # of which nothing is encoded yet
    page.start("brain")
    page.wait_for_message("looking at slices")
    page.tab.keyboard.press("Escape")
    page.wait("window.trame.state.get('busy') === false")
    assert page.message == "cancelled" and page.voxels() == {}
    page.set("plane", "axial")
    page.segment("white matter")  # it goes on as if nothing had been
    assert page.voxels()["white matter"] > 10_000


def test_a_prompt_that_is_not_there_is_said_and_its_segment_is_empty(page):
    page.segment("polyp")
    assert page.message == "polyp: not found"
    (row,) = page.state("segments")
    assert (row["size"], row["voxels"]) == ("not found", 0) and float(row["presence"]) < 0.5


def test_what_was_done_is_undone_step_by_step(page):
    page.segment("brain")
    made = page.voxels()
    page.tab.click("[title=Delete]")
    page.wait("!window.trame.state.get('segments').length")
    page.tab.click("#undo")
    page.wait("window.trame.state.get('segments').length")
    assert page.voxels() == made
    page.tab.press("#prompts", "Enter")
    page.tab.wait_for_selector("#again")  # it asks before it runs a prompt again
    page.tab.click("text=Keep both")
    page.wait("window.trame.state.get('segments').length == 2")
    assert list(page.voxels()) == ["brain", "brain (2)"]
    for left in (1, 0):
        page.tab.click("#undo:not([disabled])")
        page.wait(f"window.trame.state.get('segments').length == {left}")
    assert page.tab.is_disabled("#undo")


def test_names_colours_and_visibility_are_the_users(page, tmp_path):
    page.segment("brain")
    page.tab.fill("input.name", "whole brain")
    page.tab.press("input.name", "Tab")
    page.wait("window.trame.state.get('segments')[0].name == 'whole brain'")
    page.tab.fill("input[type=color]", "#00ff00")
    page.tab.dispatch_event("input[type=color]", "change")
    page.wait("window.trame.state.get('segments')[0].color == '#00ff00'")
    page.tab.wait_for_timeout(2000)
    shown = page.picture("axial")
    page.tab.click("[title=Hide]")
    page.wait("!window.trame.state.get('segments')[0].visible")
    page.tab.wait_for_timeout(2000)
    assert page.picture("axial") != shown
    segmentation = sitk.ReadImage(str(page.saved(".seg.nrrd", tmp_path)))
    assert segmentation.GetMetaData("Segment0_Name") == "whole brain"
    assert [float(part) for part in segmentation.GetMetaData("Segment0_Color").split()] == [0, 1, 0]


def test_a_broken_file_is_refused_in_words_and_nothing_is_lost(page, head, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(head.read_bytes()[:100_000])
    page.bring(broken)
    assert page.state("wrong") and page.message.startswith("broken.nii.gz ") and "/" not in page.message
    assert [scan["title"] for scan in page.state("scans")] == ["head.nii.gz"]
    empty = tmp_path / "empty.nii"
    empty.touch()
    page.bring(empty)
    assert page.state("wrong") and "empty" in page.message
    elsewhere = tmp_path / "elsewhere.mha"  # of which no voxel may be shown
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 9 9 9", "ElementType = MET_UCHAR"]
    elsewhere.write_text("\n".join([*lines, f"ElementDataFile = {head}\n"]))
    page.bring(elsewhere)
    assert page.message == "elsewhere.mha names the files of its voxels; save it as one file"
    assert [scan["title"] for scan in page.state("scans")] == ["head.nii.gz"]


def test_arrows_move_the_slices_under_the_mouse(page):
    places = {}
    for view in ("coronal", "axial"):
        page.tab.hover(f"[data-view={view}]")
        before = page.tab.inner_text(f"[data-view={view}] .view-place")
        page.tab.keyboard.press("ArrowUp")
        page.tab.wait_for_function(
            "([view, before]) => document.querySelector(`[data-view=${view}] .view-place`).innerText != before",
            arg=[view, before],
        )
        places[view] = (before, page.tab.inner_text(f"[data-view={view}] .view-place"))
    assert places["axial"] != places["coronal"]


def test_windows_and_the_light_page_change_what_is_seen(page):
    page.tab.wait_for_timeout(2000)
    before = page.picture("axial")
    page.set("preset", "lung")
    page.tab.wait_for_timeout(2000)
    assert page.picture("axial") != before
    page.tab.click("#theme")
    page.wait("document.querySelector('.v-theme--light')")


def test_a_file_that_is_dropped_is_opened(page, head):
    page.tab.evaluate(
        """content => {
            const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.nii.gz"));
            window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        }""",
        base64.b64encode(head.read_bytes()).decode(),
    )
    page.wait_for_message("dropped.nii.gz is open")
    assert [scan["title"] for scan in page.state("scans")] == ["head.nii.gz", "dropped.nii.gz"]
    page.tab.click("#close")
    page.wait("window.trame.state.get('scans').length == 1")
    assert page.state("facts").startswith("197 × 233 × 48 voxels")
