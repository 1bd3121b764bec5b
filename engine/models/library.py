"""The user's adapters: list, install, share, verify, remove. Nothing half-copied or changed is ever found by name.

They are installed into `user_models()`, the user's own folder, which is looked at before the shipped models; the
shipped ones are never written.
"""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from engine.archives import DAMAGE, safe_entries
from engine.choices import METHODS
from engine.errors import UserError
from engine.files import left_folders, private_folder
from engine.models.bundle import (
    CARD,
    INSTALLED_FROM,
    README,
    WEIGHTS,
    AdapterCard,
    adapter_names,
    check_base,
    check_bundle_folder,
    find_adapter,
    read_card,
    weights_of,
    write_card,
)
from engine.models.places import HUB, SHIPPED_MODELS, is_base, local_base_names, user_models

if TYPE_CHECKING:
    from engine.models.hub import Parcel

MIB = 1 << 20
LARGEST_BYTES = {WEIGHTS: 4096 * MIB, CARD: MIB, README: MIB}  # the largest method, `cris`, takes 560 MiB
MOST_ENTRIES = 10_000  # of a zip file
BLOCK_BYTES = MIB
INSTALLING, REMOVING, BEFORE = ".installing-", ".removing-", "before"  # folders while work goes on in them


@dataclass(frozen=True)
class Entry:
    """An adapter of the model folders.

    Attributes:
        name: by which it is found, that of its folder.
        shipped: it came with this project and is not removed.
        card: None where `problem` says why it cannot be read.
    """

    name: str
    folder: Path
    shipped: bool
    card: AdapterCard | None
    problem: str = ""


@dataclass(frozen=True)
class Installation:
    """What was installed, or would be.

    Attributes:
        replaces: an adapter of that name is there already.
    """

    name: str
    folder: Path
    card: AdapterCard
    replaces: bool


def list_adapters() -> list[Entry]:
    """Return all adapters of the model folders by name, damaged ones too."""
    _clear_left(user_models())
    entries = []
    for name in adapter_names():
        card, problem, folder = None, "", _folder_of(name)
        try:
            card = read_card(folder)
        except UserError as error:
            problem = str(error)
        entries.append(Entry(name, folder, folder.parent == SHIPPED_MODELS, card, problem))
    return entries


def install_adapter(
    source: Path | str, name: str | None = None, replace: bool = False, dry_run: bool = False
) -> Installation:
    """Install an adapter from a folder or a zip file, which holds its three files at its top or in one folder,
    or from the Hub; its card then names the commit.

    What else is there, such as the run of its training, is left out. All is copied beside, checked, and renamed.

    Args:
        source: a path, or `hf:OWNER/NAME[@REVISION]` (see `engine.models.hub`).
        name: by which it will be found; that on its card when None.
        replace: it may take the place of an adapter of the user's with that name, whose folder goes as a whole.
        dry_run: check everything, and install nothing.

    Raises:
        UserError: the source holds no adapter, or is damaged, too large or not safe; the name is taken.
    """
    models = user_models()
    try:
        models.mkdir(parents=True, exist_ok=True)
        _clear_left(models)
        with private_folder(INSTALLING, models) as staging:
            staged = staging / "adapter"
            staged.mkdir()
            card = _stage(source, staged)
            target = models / _checked_name(card.name if name is None else name)
            replaces = (target / CARD).is_file()
            check_bundle_folder(target, replace or dry_run, "add --overwrite to replace it, or choose a --name")
            if not dry_run:
                _put(staged, target, staging / BEFORE / target.name)
    except OSError as error:
        raise UserError(f"{source} cannot be installed into {models}: {error.strerror or error}") from error
    return Installation(target.name, target, card, replaces)


def share_adapter(adapter: str, name: str, public: bool = False, dry_run: bool = False) -> tuple["Parcel", str]:
    """Send an adapter to the Hub as `hf:OWNER/NAME`; return what was sent, and the address of the commit.

    Args:
        adapter: its name or folder.
        public: whether everybody may see a repository that is made for it.
        dry_run: send nothing; the address is empty.

    Raises:
        UserError: there is no such adapter, it is damaged, its card holds a path, or the Hub refuses it.
    """
    from engine.models import hub  # its library takes a second

    folder = find_adapter(adapter)
    parcel = hub.parcel_of(folder, read_card(folder), name)
    return parcel, "" if dry_run else hub.send(parcel, public)


def verify_adapter(name: str) -> str:
    """Check an adapter's files, and its base where that is on this machine; return what was seen, in words.

    Raises:
        UserError: it is unknown, incomplete or changed, or its base is another one.
    """
    folder = _folder_of(name)
    card = read_card(folder)
    weights_of(folder, card)
    if card.base not in local_base_names():
        return f"{name}: its files are whole; its base '{card.base}' is not on this machine, so was not compared"
    from engine.models.bases import open_base  # it loads PyTorch, which the rest does without

    check_base(card, open_base(card.base))
    return f"{name}: its files are whole, and its base '{card.base}' is the one that it was trained on"


def remove_adapter(name: str) -> Path:
    """Remove an adapter of the user's with all that its folder holds; return where it was.

    Raises:
        UserError: there is none of that name, or it is shipped.
    """
    folder = user_models() / name
    if name in adapter_names() and not (folder / WEIGHTS).exists():
        raise UserError(f"the adapter '{name}' is shipped with this project and stays")
    if name not in adapter_names() or is_base(folder):
        own = [entry.name for entry in list_adapters() if not entry.shipped]
        raise UserError(f"there is no adapter '{name}' of your own; there are {', '.join(own) or 'none'}")
    if folder.is_symlink():
        folder.unlink()
        return folder
    with private_folder(REMOVING, folder.parent) as aside:
        folder.rename(aside / "adapter")  # gone at once, not file by file
    return folder


def _folder_of(name: str) -> Path:
    """Return the folder of an adapter that is looked up by name alone, damaged or not."""
    own = user_models() / name
    if name in adapter_names():
        return own if (own / WEIGHTS).exists() else SHIPPED_MODELS / name
    return find_adapter(name)


def _checked_name(name: str) -> str:
    if not name or name.startswith(".") or name != Path(name).name or set(name) & set('\\/:*?"<>|\0'):
        raise UserError(f"'{name}' is no name for an adapter; choose one without folders and signs by --name")
    if (SHIPPED_MODELS / name).exists():
        raise UserError(f"'{name}' is the name of a shipped model; choose another by --name")
    return name


def _stage(source: Path | str, staged: Path) -> AdapterCard:
    """Copy an adapter into a folder, check it there, and return its card."""
    if not str(source).startswith(HUB):
        _copy(source, staged, _opened(Path(source)))
        return _check_staged(staged, source)
    from engine.models import hub  # its library takes a second

    fetched = hub.fetch(source, LARGEST_BYTES)
    _copy(source, staged, nullcontext(lambda file: (fetched.folder / file).open("rb")))
    card = _check_staged(staged, source)
    card = replace(card, training=card.training | {INSTALLED_FROM: fetched.name})
    write_card(staged, card)
    return card


def _check_staged(folder: Path, source: Path | str) -> AdapterCard:
    """Return the card of an adapter that was copied, once all of it is as the card says."""
    try:
        card = read_card(folder)
        weights_of(folder, card)
    except UserError as error:  # it names a folder that nobody has seen
        raise UserError(str(error).replace(str(folder), str(source))) from error
    if card.method not in METHODS:
        raise UserError(f"the adapter '{card.name}' is a '{card.method}'; this engine knows {', '.join(METHODS)}")
    return card


def _put(staged: Path, target: Path, aside: Path) -> None:
    """Rename a staged adapter to where it belongs; what was there comes back if that fails."""
    there = target.exists() or target.is_symlink()
    if there:
        aside.parent.mkdir()
        target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        if there:
            aside.rename(target)
        raise


def _clear_left(models: Path) -> None:
    """Remove what a process that was killed left, and put back what it had only begun to replace."""
    for staging in left_folders(INSTALLING, models):
        with suppress(OSError):
            for before in (staging / BEFORE).glob("*"):
                if not (models / before.name).exists():
                    before.rename(models / before.name)
            shutil.rmtree(staging)
    for aside in left_folders(REMOVING, models):
        shutil.rmtree(aside, ignore_errors=True)


def _copy(source: Path | str, folder: Path, opened: AbstractContextManager[Callable[[str], BinaryIO]]) -> None:
    """Copy the files of an adapter, each within its limit."""
    with opened as open_file:
        for name, limit in LARGEST_BYTES.items():
            with open_file(name) as reader, (folder / name).open("wb") as writer:
                left = limit
                while block := reader.read(min(BLOCK_BYTES, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise UserError(f"{name} in {source} takes more than {limit // MIB} MiB; it is no adapter")
                    writer.write(block)


@contextmanager
def _opened(source: Path) -> Iterator[Callable[[str], BinaryIO]]:
    """Yield a function that opens a file of the adapter in a folder or a zip file."""
    if source.is_dir():
        yield lambda name: _open_in_folder(source, name)
        return
    if not source.is_file():
        raise UserError(f"{source} does not exist; give the folder or the zip file of an adapter")
    try:
        with zipfile.ZipFile(source) as archive:
            entries = _checked_entries(archive, source)
            yield lambda name: archive.open(entries[name])
    except DAMAGE as error:
        raise UserError(f"{source} is no zip file, or damaged ({error}); get the adapter again") from error


def _open_in_folder(source: Path, name: str) -> BinaryIO:
    path = source / name
    if path.is_symlink():
        raise UserError(f"{path} is a link; give a folder with the files themselves")
    if not path.is_file():
        raise UserError(f"{source} holds no {name}, so no adapter; give the folder or the zip file of one")
    return path.open("rb")


def _checked_entries(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of the adapter's files, by name, once all entries are safe."""
    count = len(archive.infolist())
    if count > MOST_ENTRIES:
        raise UserError(f"{source} holds {count} entries; an adapter has three, so it is refused")
    entries = safe_entries(archive, source)
    cards = [PurePosixPath(e.filename) for e in entries if PurePosixPath(e.filename).name == CARD]
    cards = [path for path in cards if len(path.parts) <= 2 and path.parts[0] != "__MACOSX"]
    if len(cards) != 1:
        raise UserError(f"{source} holds {len(cards)} adapters at its top or in its folders; it must hold one")
    found = {}
    for name, limit in LARGEST_BYTES.items():
        same = [e for e in entries if PurePosixPath(e.filename) == cards[0].with_name(name) and not e.is_dir()]
        if len(same) != 1:
            raise UserError(f"{source} holds {name} {len(same)} times; an adapter has it once")
        if same[0].file_size > limit:
            raise UserError(f"{name} in {source} takes more than {limit // MIB} MiB; it is no adapter")
        found[name] = same[0]
    return found
