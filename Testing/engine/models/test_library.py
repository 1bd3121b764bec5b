"""Adapters are installed from folders and zip files whole or not at all, verified by hash, and removed."""

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
from conftest import SHIPPED_ADAPTERS, files, make_adapter, run_command

from engine import adapters
from engine.errors import UserError
from engine.models import library
from engine.models.bundle import CARD, README, WEIGHTS, read_card
from engine.models.library import install_adapter, list_adapters, remove_adapter, verify_adapter
from engine.models.places import SHIPPED_MODELS, user_models
from engine.segmentation.segmenter import Segmenter

FILES = (WEIGHTS, CARD, README)


@pytest.fixture
def bundle(tmp_path, tiny_base):
    return make_adapter(tmp_path / "nodule", tiny_base)


def zipped(bundle, inside="nodule/", change=lambda archive: None, leave_out=()):
    path = bundle.parent / "nodule.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in set(FILES) - set(leave_out):
            archive.write(bundle / name, inside + name)
        change(archive)
    return path


def own_folders() -> set[str]:
    """Return what is in the user's models folder, hidden or not."""
    return {path.name for path in user_models().iterdir()} if user_models().exists() else set()


@pytest.mark.parametrize("inside", ["", "nodule/"])
def test_an_adapter_is_installed_from_a_zip_file_and_found_by_name(bundle, tiny_base, inside):
    done = install_adapter(zipped(bundle, inside, lambda archive: archive.writestr(f"{inside}run/log.txt", "")))
    assert (done.name, done.replaces) == ("nodule", False)
    assert files(user_models() / "nodule") == set(FILES) and own_folders() == {"nodule"}
    assert Segmenter("nodule", str(tiny_base), device="cpu").card == read_card(bundle)


def test_an_adapter_is_installed_from_a_folder_without_the_rest_of_it(bundle):
    (bundle / "run").mkdir()
    (bundle / "notes.txt").write_text("mine")
    install_adapter(bundle, name="other")
    assert files(user_models() / "other") == set(FILES) and own_folders() == {"other"}
    listed = {**dict.fromkeys(SHIPPED_ADAPTERS, True), "other": False}
    assert [(e.name, e.shipped) for e in list_adapters()] == sorted(listed.items())


def link(archive):
    entry = zipfile.ZipInfo("nodule/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def bomb(archive):
    archive.writestr(f"nodule/{CARD}", b" " * (library.MIB + 1), zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("change", "leave_out", "message"),
    [
        (lambda archive: archive.writestr("/etc/cron.d/mine", "x"), (), "absolute path"),
        (lambda archive: archive.writestr("C:/mine", "x"), (), "absolute path"),
        (lambda archive: archive.writestr("nodule\\mine", "x"), (), "signs"),
        (lambda archive: archive.writestr("nodule/../../mine", "x"), (), "out of its folder"),
        (link, (), "link"),
        (bomb, (CARD,), "more than 1 MiB"),
        (lambda archive: None, (CARD,), "0 adapters"),
        (lambda archive: archive.writestr(f"second/{CARD}", "{}"), (), "2 adapters"),
        (lambda archive: None, (WEIGHTS,), f"{WEIGHTS} 0 times"),
        (lambda archive: archive.writestr(f"nodule/{README}", "again"), (), f"{README} 2 times"),
        (lambda archive: archive.writestr(f"nodule/{CARD}", "{}"), (CARD,), "not the card"),
        (lambda archive: archive.writestr(f"nodule/{WEIGHTS}", "x"), (WEIGHTS,), "checksum differs"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_file_that_is_not_safe_or_not_whole_leaves_nothing(bundle, change, leave_out, message):
    path = zipped(bundle, change=change, leave_out=leave_out)
    with pytest.raises(UserError, match=message) as refusal:
        install_adapter(path)
    assert "installing-" not in str(refusal.value)
    assert own_folders() == set()


def test_a_zip_file_whose_header_lies_about_sizes_is_refused(bundle):
    path = zipped(bundle, change=bomb, leave_out=(CARD,))
    content = path.read_bytes()
    size = (library.MIB + 1).to_bytes(4, "little")
    assert content.count(size) >= 2
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match="get the adapter again"):
        install_adapter(path)
    assert own_folders() == set()


def test_a_damaged_zip_file_is_refused(bundle):
    path = zipped(bundle)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="no zip file, or damaged"):
        install_adapter(path)
    content = bytearray(zipped(bundle).read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        install_adapter(path)


def test_links_in_a_folder_and_missing_sources_are_refused(bundle, tmp_path):
    (bundle / CARD).rename(tmp_path / "card.json")
    (bundle / CARD).symlink_to(tmp_path / "card.json")
    with pytest.raises(UserError, match="is a link"):
        install_adapter(bundle)
    with pytest.raises(UserError, match="does not exist"):
        install_adapter(tmp_path / "nothing.zip")


def test_what_is_there_is_replaced_only_when_that_is_said(bundle, tiny_base, tmp_path):
    install_adapter(bundle)
    newer = make_adapter(tmp_path / "newer" / "nodule", tiny_base, placement="V")
    with pytest.raises(UserError, match="holds an adapter already"):
        install_adapter(newer)
    assert install_adapter(newer, dry_run=True).replaces
    assert read_card(user_models() / "nodule") == read_card(bundle)
    assert install_adapter(newer, replace=True).replaces
    assert read_card(user_models() / "nodule") == read_card(newer) and own_folders() == {"nodule"}


def test_what_was_there_comes_back_when_the_new_one_cannot_be_put_there(bundle, monkeypatch):
    install_adapter(bundle)
    rename = Path.rename

    def refuse(path, target):
        if path.name == "adapter":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="No space left"):
        install_adapter(bundle, replace=True)
    assert read_card(user_models() / "nodule") == read_card(bundle) and own_folders() == {"nodule"}


@pytest.mark.parametrize("name", ["head-t1", "mini", "../nodule", ".hidden", "", "a/b", "a:b", ".."])
def test_names_of_shipped_models_and_names_that_are_none_are_refused(bundle, name):
    with pytest.raises(UserError, match=r"choose (another|one)"):
        install_adapter(bundle, name=name, replace=True)
    assert own_folders() == set()


def test_verifying_compares_files_with_the_card_and_the_base(bundle, other_base):
    install_adapter(bundle)
    assert "not on this machine" in verify_adapter("nodule")  # its base is a folder elsewhere
    assert "is the one that it was trained on" in verify_adapter("head-t1")
    card = json.loads((user_models() / "nodule" / CARD).read_text()) | {"base": "other"}
    (user_models() / "nodule" / CARD).write_text(json.dumps(card))
    (user_models() / "other").symlink_to(other_base)
    with pytest.raises(UserError, match="choose that base"):
        verify_adapter("nodule")
    with (user_models() / "nodule" / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(UserError, match="checksum differs"):
        verify_adapter("nodule")


def test_only_adapters_of_ones_own_are_removed(bundle, tiny_base, tmp_path):
    install_adapter(bundle)
    (user_models() / "linked").symlink_to(bundle)
    for name in ("head-t1", "mini", "nobody", "../nodule", ""):
        with pytest.raises(UserError, match=r"stays|of your own"):
            remove_adapter(name)
    assert (SHIPPED_MODELS / "head-t1" / WEIGHTS).is_file()
    remove_adapter("linked")
    assert files(bundle) == set(FILES)
    remove_adapter("nodule")
    assert own_folders() == set()


def test_the_command_lists_installs_verifies_and_removes(monkeypatch, capsys, bundle):
    def command(*arguments):
        return run_command(monkeypatch, capsys, adapters.main, *arguments)

    code, printed, _ = command("install", bundle, "--dry-run", "--json")
    assert code == 0 and json.loads(printed)["card"]["name"] == "nodule" and own_folders() == set()
    assert command("install", zipped(bundle))[0] == 0
    code, printed, _ = command("list", "--json")
    rows = {row["name"]: row for row in json.loads(printed)}
    assert rows["nodule"]["card"]["method"] == "dense" and not rows["nodule"]["shipped"]
    assert "head-t1: dense VL for mini, shipped" in command("list")[1]
    assert command("verify")[1].count("whole") == len(SHIPPED_ADAPTERS) + 1
    (user_models() / "nodule" / CARD).write_text("{}")
    code, printed, errors = command("verify")
    assert code == 2 and "not the card" in errors and "head-t1" in printed
    assert "not the card" in command("list")[1]
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
    assert command("remove", "nodule")[0] == 2 and own_folders() == {"nodule"}
    assert command("remove", "nodule", "--yes")[0] == 0 and own_folders() == set()
