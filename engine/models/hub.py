"""Adapters on the Hugging Face Hub: fetched by name and revision, and shared with a card that the Hub reads.

A name is `hf:OWNER/NAME`, with `@REVISION` (a commit, a tag or a branch) where not the newest one is meant.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from engine.errors import UserError
from engine.models.bundle import CARD, QUESTIONS, README, WEIGHTS, AdapterCard, card_for_people, weights_of
from engine.models.places import HUB
from engine.version import __version__

NAME = re.compile(rf"{HUB}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
PATH = re.compile(r"(^|[\s(\"'=])(/[^\s/]|~/|\\\\|[A-Za-z]:[\\/])")  # of somebody's file, inside a text
LIBRARY = "vlsm-segmenter"
LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0")
LICENCES += ("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0")  # those that the Hub knows by these names
FIGURES = {"dice": "Dice", "iou": "IoU"}


@dataclass(frozen=True)
class Fetched:
    """An adapter's files of a repository, in the Hub's cache on this machine.

    Attributes:
        name: what was asked for, with the commit that it came to mean: it gives the same files for ever.
    """

    folder: Path
    name: str


@dataclass(frozen=True)
class Parcel:
    """What is sent to the Hub: the files' contents by their names, and nothing else."""

    repository: str
    files: Mapping[str, bytes]

    def __str__(self) -> str:
        sizes = [f"{name} ({len(content):,} bytes)" for name, content in self.files.items()]
        return f"{self.repository}: {', '.join(sizes)}"


def fetch(name: str, largest_bytes: Mapping[str, int]) -> Fetched:
    """Fetch an adapter's files; without a network, or with `HF_HUB_OFFLINE`, those that the cache has.

    Args:
        largest_bytes: the files by their names, with the size that each may have.

    Raises:
        UserError: it is no such name, there is no such repository or revision, a file is missing or too large, or
            the Hub cannot be reached and the cache has nothing.
    """
    repository, revision = _parsed(name)
    wanted = {"revision": revision, "allow_patterns": list(largest_bytes)}
    try:
        found = HfApi().get_paths_info(repository, list(largest_bytes), revision=revision)
        _check_files(name, found, largest_bytes)
        folder = snapshot_download(repository, **wanted)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"there is no {name} on the Hub, or it is private: then log in first, with `hf auth login`"
        ) from error
    except UserError:
        raise
    except Exception as error:  # without a network, the library raises errors of several others
        folder = _cached(name, repository, wanted, error)
    return Fetched(Path(folder), f"{HUB}{repository}@{Path(folder).name}")


def parcel_of(folder: Path, card: AdapterCard, name: str) -> Parcel:
    """Return what would be sent of a bundle: its weights, its card, and a page with what the Hub reads of it.

    Pictures and runs of training stay.

    Raises:
        UserError: the name is no repository's, the weights are not those of the card, or the card holds a path.
    """
    repository, revision = _parsed(name)
    if revision is not None:
        raise UserError(f"'{name}' names a revision, which only what is there can have; leave '@{revision}' out")
    for where, text in _texts(asdict(card)):
        if PATH.search(text):
            raise UserError(f"the card says '{text[:80]}' under {where}, which looks like a path; change it first")
    page = f"---\n{_metadata(card)}\n---\n\n{_page(card, name)}"
    return Parcel(
        repository,
        {
            WEIGHTS: weights_of(folder, card).read_bytes(),
            CARD: (json.dumps(asdict(card), indent=1) + "\n").encode(),
            README: page.encode(),
        },
    )


def send(parcel: Parcel, public: bool) -> str:
    """Send a parcel as one commit, to a repository that is made where there is none; return the commit's address.

    Args:
        public: whether everybody may see a repository that is made; one that is there stays as it is.

    Raises:
        UserError: nobody is logged in, the repository may not be written, or the Hub cannot be reached.
    """
    api = HfApi(library_name=LIBRARY, library_version=__version__)
    additions = [CommitOperationAdd(name, content) for name, content in parcel.files.items()]
    try:
        api.create_repo(parcel.repository, private=not public, exist_ok=True)
        done = api.create_commit(parcel.repository, additions, commit_message=f"By {LIBRARY} {__version__}")
    except Exception as error:  # without a network, the library raises errors of several others
        raise UserError(
            f"{parcel.repository} could not be sent ({_reason(error)}); log in with `hf auth login`, by a token "
            "that may write there"
        ) from error
    return str(done.commit_url)


def _parsed(name: str) -> tuple[str, str | None]:
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f"'{name}' names no repository; write {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    return match["repository"], match["revision"]


def _check_files(name: str, found: list, largest_bytes: Mapping[str, int]) -> None:
    sizes = {entry.path: entry.size for entry in found}
    missing = [file for file in largest_bytes if file not in sizes]
    if missing:
        raise UserError(f"{name} holds no {missing[0]}, so no adapter of this project")
    large = [file for file, most in largest_bytes.items() if sizes[file] > most]
    if large:
        raise UserError(f"{large[0]} of {name} takes {sizes[large[0]]:,} bytes; it is no adapter")


def _cached(name: str, repository: str, wanted: dict, error: Exception) -> str:
    try:
        return snapshot_download(repository, **wanted, local_files_only=True)
    except OSError:  # it is not in the cache
        raise UserError(
            f"{name} cannot be fetched ({_reason(error)}), and was not fetched before; connect to the network, or "
            "install the adapter from a folder or a zip file"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _texts(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a card, with the name of the entry that holds it."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield where or str(key), str(key)
            yield from _texts(inner, where or str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, where)


def _metadata(card: AdapterCard) -> str:
    """Return what the Hub reads, as YAML: library, licence, tags, Dice and IoU of the plain class prompts."""
    licence = card.licence.lower().replace(" ", "-")
    other = {"license": "other", "license_name": licence or "unknown"}
    data = ModelCardData(
        **({"license": licence} if licence in LICENCES else other),
        library_name=LIBRARY,
        pipeline_tag="image-segmentation",
        tags=sorted({"medical", "clipseg", "vlsm-adapter", card.method, card.modality.lower()} - {""}),
        model_name=card.name,
        eval_results=list(_results(card)) or None,
    )
    return data.to_yaml()


def _results(card: AdapterCard) -> Iterator[EvalResult]:
    for measured, structures in card.metrics.items():
        if not measured.endswith(QUESTIONS["plain"]):
            continue
        for structure, figures in structures.items():
            for figure, title in FIGURES.items():
                yield EvalResult(
                    task_type="image-segmentation",
                    dataset_type=measured.split(",")[0],
                    dataset_name=card.data_set or measured.split(",")[0],
                    dataset_split="test",
                    metric_type=figure,
                    metric_name=f"{title}, {structure}",
                    metric_value=figures[figure],
                )


def _page(card: AdapterCard, name: str) -> str:
    return f"{card_for_people(card)}\nTo install it:\n\n    python -m engine.adapters install {name}\n"
