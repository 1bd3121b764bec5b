"""Adapters on the Hugging Face Hub, with its own library and a server on loopback that speaks its routes."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from conftest import ROOT, files, make_adapter

from engine.models.bundle import CARD, README, WEIGHTS, read_card, write_card

NAME = "hf:clinic/nodule"


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        commits: of the one repository, the newest last: commit -> file name -> content.
        sent: the bodies of all requests that wrote.
        private: whether the repository was made private.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Routes)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.sent: list[bytes] = []
        self.asked: list[str] = []
        self.private: bool | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, contents: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr(sorted(contents.items())).encode()).hexdigest()
        self.commits.pop(commit, None)
        self.commits[commit] = contents
        return commit

    def find(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1] if self.commits else None
        return revision if revision in self.commits else None


class Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if path == "/api/repos/create":
            self.server.private = json.loads(body)["visibility"] == "private"
            self.answer({"url": f"{self.server.address}/clinic/nodule"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in path:
            self.server.sent.append(body)
            rows = [json.loads(line) for line in body.splitlines()]
            values = [row["value"] for row in rows if row["key"] == "file"]
            commit = self.server.add({value["path"]: base64.b64decode(value["content"]) for value in values})
            url = f"{self.server.address}/clinic/nodule/commit/{commit}"
            self.answer({"success": True, "commitOid": commit, "commitUrl": url})
        elif "/paths-info/" in path:
            self.of_commit(path.rpartition("/")[2], lambda commit, contents: self.sizes(contents, body))
        else:
            self.answer({"error": "no such route"}, 404)

    def sizes(self, contents: dict[str, bytes], body: bytes) -> None:
        wanted = parse_qs(body.decode()).get("paths", [])
        rows = [{"type": "file", "path": n, "size": len(contents[n]), "oid": "0"} for n in wanted if n in contents]
        self.answer(rows)

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if "/api/models/" in path and "/revision/" in path:
            self.of_commit(path.rpartition("/")[2], self.describe)
        elif "/api/models/" in path and "/tree/" in path:
            self.of_commit(path.rpartition("/")[2], lambda commit, contents: self.tree(contents))
        elif "/resolve/" in path:
            _, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            self.of_commit(revision, lambda commit, contents: self.file(commit, contents[name]))
        else:
            self.answer({"error": "no such route"}, 404)

    do_HEAD = do_GET

    def describe(self, commit: str, contents: dict[str, bytes]) -> None:
        self.answer({"id": "clinic/nodule", "sha": commit, "siblings": [{"rfilename": name} for name in contents]})

    def tree(self, contents: dict[str, bytes]) -> None:
        self.answer([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in contents.items()])

    def file(self, commit: str, content: bytes) -> None:
        etag = hashlib.sha1(content).hexdigest()
        self.reply(content, 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def of_commit(self, revision: str, answer) -> None:
        commit = self.server.find(revision)
        if commit is None:
            kind = "RevisionNotFound" if self.server.commits else "RepoNotFound"
            self.reply(b"{}", 404, {"X-Error-Code": kind})
        else:
            answer(commit, self.server.commits[commit])

    def answer(self, value: object, status: int = 200) -> None:
        self.reply(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def reply(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def bundle(tmp_path, tiny_base):
    folder = make_adapter(tmp_path / "bundles" / "nodule", tiny_base)
    write_card(folder, replace(read_card(folder), base="tiny"))  # not by its path, which would not be sent
    return folder


@pytest.fixture
def adapters(hub, tmp_path):
    """Run `python -m engine.adapters` as a user of that Hub; return code, output and errors."""

    def run(*words: object, **changed: str) -> tuple[int, str, str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hub-cache"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
            **changed,
        }
        command = [sys.executable, "-m", "engine.adapters", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


def installed(name: str = "nodule") -> Path:
    return Path(os.environ["VLSM_MODELS"]) / name


def contents(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in (WEIGHTS, CARD, README)}


def test_what_is_shared_is_what_others_install_pinned_to_its_commit(adapters, hub, bundle):
    (bundle / "run").mkdir()
    (bundle / "run" / "log.csv").write_text("mine")
    (bundle / "picture.jpg").write_bytes(b"a training image")
    code, printed, errors = adapters("share", bundle, NAME)
    assert code == 0, errors
    (commit,) = hub.commits
    assert hub.private and set(hub.commits[commit]) == {WEIGHTS, CARD, README}
    assert f"/commit/{commit}" in printed

    code, printed, errors = adapters("install", NAME)
    assert code == 0 and "installed nodule" in printed, errors
    card = read_card(installed())
    assert card.training["installed_from"] == f"{NAME}@{commit}"
    assert card.sha256 == read_card(bundle).sha256
    assert files(installed()) == {WEIGHTS, CARD, README}
    assert f"{NAME}@{commit}" in (installed() / README).read_text()


def test_a_revision_is_what_it_was_whatever_came_after(adapters, hub, bundle):
    first = hub.add(contents(bundle))
    card = read_card(bundle)
    card.prompts.append("later")
    write_card(bundle, card)
    hub.add(contents(bundle))
    assert adapters("install", f"{NAME}@{first}", "--name", "old")[0] == 0
    assert adapters("install", NAME, "--name", "new")[0] == 0
    assert "later" not in read_card(installed("old")).prompts and "later" in read_card(installed("new")).prompts


def test_what_the_cache_has_is_installed_without_a_network(adapters, hub, bundle):
    hub.add(contents(bundle))
    assert adapters("install", NAME, "--dry-run")[0] == 0
    for changed in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        code, printed, errors = adapters("install", NAME, "--overwrite", **changed)
        assert code == 0 and "installed nodule" in printed, errors
    code, _, errors = adapters("install", "hf:clinic/other", HF_HUB_OFFLINE="1")
    assert code == 2 and "was not fetched before" in errors


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(adapters, hub, bundle):
    code, printed, errors = adapters("share", bundle, NAME, "--dry-run")
    assert code == 0, errors
    assert not hub.sent and not hub.asked
    assert all(name in printed for name in (WEIGHTS, CARD, README)) and "license: " in printed


def test_the_hub_reads_licence_library_and_measured_dice(adapters, hub):
    code, _, errors = adapters("share", "polyp", NAME, "--public")
    assert code == 0 and hub.private is False, errors
    (sent,) = hub.commits.values()
    _, front, page = sent[README].decode().split("---\n", 2)
    data = yaml.safe_load(front)
    card = read_card(ROOT / "Resources" / "Models" / "polyp")
    (measured,) = (structures for kind, structures in card.metrics.items() if kind.endswith("plain class prompt"))
    results = data["model-index"][0]["results"]
    assert results[0]["metrics"][0] == {"type": "dice", "value": measured["polyp"]["dice"], "name": "Dice, polyp"}
    assert data["library_name"] == "vlsm-segmenter" and data["license"] == "cc-by-nc-sa-4.0"
    assert f"engine.adapters install {NAME}" in page


@pytest.mark.parametrize("place", ["/home/someone/scans", "~/scans", r"C:\scans", r"\\ward\scans"])
def test_a_card_that_names_a_path_is_not_sent(adapters, hub, bundle, place):
    card = read_card(bundle)
    card.training["note"] = f"trained on {place}"
    write_card(bundle, card)
    code, _, errors = adapters("share", bundle, NAME)
    assert code == 2 and "looks like a path" in errors and "training" in errors
    assert not hub.sent


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:nodule", "names no repository"),
        ("hf:clinic/no dule", "names no repository"),
        (NAME, "there is no hf:clinic/nodule on the Hub"),
    ],
)
def test_what_is_not_there_is_named(adapters, name, message):
    code, printed, errors = adapters("install", name)
    assert code == 2 and message in errors and not printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({WEIGHTS: None}, f"holds no {WEIGHTS}"),
        ({WEIGHTS: b"others"}, "checksum differs"),
        ({CARD: b"{}"}, "is not the card of an adapter"),
        ({CARD: b" " * ((1 << 20) + 1)}, "it is no adapter"),
    ],
)
def test_what_is_damaged_or_no_adapter_is_not_installed(adapters, hub, bundle, change, message):
    hub.add({name: content for name, content in {**contents(bundle), **change}.items() if content is not None})
    code, _, errors = adapters("install", NAME)
    assert code == 2 and message in errors
    assert not installed().exists()


def test_a_hub_that_refuses_is_told_in_words(adapters, bundle):
    code, _, errors = adapters("share", bundle, NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 2 and "could not be sent" in errors and "Traceback" not in errors
