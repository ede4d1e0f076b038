"""Folders of Google Drive and the Hub come down from servers on the loopback that stand in."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import SOUNDS, Page, Site, outcomes, serving, sound

from shards.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


# --- Google Drive ------------------------------------------------------------------------------

FOLDER, INNER = "folder" + "0" * 22, "folder" + "1" * 22
IDS = {name: f"file-{name}" + "0" * 22 for name in "abcq"}
LINK = "https://drive.google.com"


def drive(path: str) -> Page | None:
    """The pages of Google Drive that a public folder is read from."""

    def page(title: str, *entries: str) -> Page:
        html = f"<html><title>{title}</title>{''.join(entries)}</html>"
        return 200, {"Content-Type": "text/html"}, html.encode()

    def file(name: str, shown: str) -> str:
        return f'<a href="{LINK}/file/d/{IDS[name]}/view">{shown}</a>'

    if path == f"/embeddedfolderview?id={FOLDER}":
        inner = f'<a href="{LINK}/drive/folders/{INNER}">inner</a>'
        return page("Sounds", file("a", "a.wav"), file("q", "q.wav"), inner)
    if path == f"/embeddedfolderview?id={INNER}":
        return page("dog bark", file("b", "b (1).wav"), file("c", "b (1).wav"))
    if path == f"/embeddedfolderview?id={INNER[::-1]}":  # a file and a folder of one name
        again = f'<a href="{LINK}/drive/folders/{FOLDER[::-1]}">x</a>'
        return page("x", file("a", "x"), again)
    if path == f"/embeddedfolderview?id={FOLDER[::-1]}":
        return page("x", file("c", "c.wav"))
    if path == f"/uc?id={IDS['q']}":
        text = '<p class="uc-error-subcaption">Too many users have viewed or downloaded this</p>'
        return 200, {"Content-Type": "text/html"}, text.encode()
    for name in "abc":
        if path == f"/uc?id={IDS[name]}":
            headers = {"Content-Disposition": 'attachment; filename="x.wav"'}
            status, more, body = sound(f"/{name}.wav") or (404, {}, b"")
            return status, headers | more, body
    return None


@pytest.fixture
def google(monkeypatch):
    """A loopback server that stands in for drive.google.com."""
    requests = pytest.importorskip("requests")
    pytest.importorskip("gdown")
    plain = requests.Session.get
    with serving(Site(drive)) as site:
        to_site = lambda self, url, **kw: plain(self, url.replace(LINK, site.url), **kw)  # noqa: E731
        monkeypatch.setattr(requests.Session, "get", to_site)
        yield site


def test_a_drive_folder_comes_down_with_its_names(google, tmp_path, capsys):
    google.cut[f"/uc?id={IDS['b']}"] = 1
    out = tmp_path / "out"
    words = ["download", "drive", f"{LINK}/drive/folders/{FOLDER}?usp=sharing", str(out)]
    assert main(words) == 0
    rows = {row["link"]: row for row in outcomes(out)}
    assert (out / "a.wav").read_bytes() == SOUNDS["/a.wav"]
    assert (out / "dog bark/b (1).wav").read_bytes() == SOUNDS["/b.wav"]
    second = out / f"dog bark/b (1) ({IDS['c']}).wav"  # two files of one name are two files
    assert second.read_bytes() == SOUNDS["/c.wav"]
    assert any(path.endswith(IDS["b"]) and ranges for _, path, ranges in google.asked)
    assert rows[IDS["q"]]["status"] == "failed" and "quota" in rows[IDS["q"]]["reason"]
    assert rows[IDS["b"]]["label"] == "dog bark"
    google.asked.clear()
    assert main(words) == 0
    files = [path for _, path, _ in google.asked if path.startswith("/uc")]
    assert {path.partition("=")[2] for path in files} == {IDS["q"]}
    assert "downloaded 0, there already 3, failed 1" in capsys.readouterr().out


def test_a_file_and_a_folder_of_one_name_both_come_down(google, tmp_path):
    out = tmp_path / "out"
    assert main(["download", "drive", INNER[::-1], str(out)]) == 0
    assert (out / f"x ({IDS['a']})").read_bytes() == SOUNDS["/a.wav"]
    assert (out / "x/c.wav").read_bytes() == SOUNDS["/c.wav"]


def test_a_private_drive_folder_is_said_to_be_so(google, tmp_path, capsys):
    assert main(["download", "drive", "private" + "0" * 20, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "anyone with the link" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- Hugging Face Hub --------------------------------------------------------------------------


def hub(path: str) -> Page | None:
    """The parts of the Hub's API that a snapshot of user/sounds needs."""
    head, base = {"Content-Type": "application/json"}, "/api/datasets/user/sounds"
    names = {"dog/a.wav": "/a.wav", "rain/b.wav": "/b.wav", "README.md": "/c.wav"}
    path = path.partition("?")[0]
    if "/user/above" in path:
        path, names = path.replace("/user/above", "/user/sounds"), {"../c.wav": "/c.wav"}
    if path in (f"{base}/revision/v1", f"{base}/revision/{COMMIT}", base):
        siblings = [{"rfilename": name} for name in names]
        about = {"id": "user/sounds", "sha": COMMIT, "siblings": siblings, "private": False}
        return 200, head, json.dumps(about).encode()
    if path == f"{base}/tree/{COMMIT}":
        tree = [
            {"type": "file", "path": n, "size": len(SOUNDS[s]), "oid": s[1] * 40}
            for n, s in names.items()
        ]
        return 200, head, json.dumps(tree).encode()
    if path.startswith("/api/"):
        code = "RevisionNotFound" if "sounds" in path else "RepoNotFound"
        return 404, {"X-Error-Code": code}, b"{}"
    name = path.removeprefix(f"/datasets/user/sounds/resolve/{COMMIT}/")
    if name not in names:
        return None
    status, headers, body = sound(names[name]) or (404, {}, b"")
    return status, headers | {"X-Repo-Commit": COMMIT}, body


@pytest.fixture
def hugging_face(monkeypatch, tmp_path):
    """A loopback server that stands in for huggingface.co, with a token in the environment."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Site(hub)) as site:
        constants = importlib.import_module("huggingface_hub.constants")
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the caller's is
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", site.url)
        yield site


def test_a_hub_repository_is_pinned_to_a_commit(hugging_face, tmp_path, capsys, caplog):
    out = tmp_path / "out"
    words = ["download", "hub", "user/sounds", str(out), "--revision=v1", "--include=*.wav"]
    assert main(words) == 0
    assert (out / "dog/a.wav").read_bytes() == SOUNDS["/a.wav"]
    assert (out / "rain/b.wav").read_bytes() == SOUNDS["/b.wav"]
    assert not (out / "README.md").exists()
    assert json.loads((out / "source.json").read_text()) == {
        "repo": "user/sounds", "type": "dataset", "revision": "v1", "include": "*.wav",
        "commit": COMMIT,
    }  # fmt: skip
    said = capsys.readouterr()
    assert f"2 files of user/sounds at {COMMIT}" in said.out
    assert any("hf_secret" in str(headers) for headers in hugging_face.headers)  # it was used
    assert "hf_secret" not in said.out + said.err + caplog.text
    assert "hf_secret" not in "".join(f.read_text() for f in out.rglob("*.json"))
    hugging_face.asked.clear()
    assert main(words) == 0  # goes by the commit, not by what v1 means now
    assert not [path for _, path, _ in hugging_face.asked if "/v1" in path]
    assert main([*words[:4], "--revision=v2"]) == 2
    assert COMMIT in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["user/none"], "no such dataset"),
        (["user/sounds", "--revision=v9"], "has no revision 'v9'"),
        (["a b c"], "no name of a repository"),
        (["user/sounds", "--include=*.xyz"], "no file fits --include=*.xyz"),
        (["user/sounds", "--repo_type=space"], "one of dataset, model"),
        (["user/above"], "Invalid filename '../c.wav'"),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(hugging_face, tmp_path, capsys, words, told):
    assert main(["download", "hub", words[0], str(tmp_path / "out"), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_note_that_is_not_ours_is_left_alone(hugging_face, tmp_path, capsys, content):
    (tmp_path / "source.json").write_text(content)
    assert main(["download", "hub", "user/sounds", str(tmp_path)]) == 2
    assert "source.json: not ours to read" in capsys.readouterr().err
    assert (tmp_path / "source.json").read_text() == content


def test_the_hub_in_a_process_that_has_loaded_nothing_of_it(tmp_path):
    surroundings = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    line = [sys.executable, "-m", "shards", "download", "hub", "user/sounds", str(tmp_path / "out")]
    done = subprocess.run(line, env=surroundings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: user/sounds: ")
    assert done.stderr.endswith("; start again to go on\n") and done.stderr.count("\n") == 1


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "module"), [("youtube", "yt_dlp"), ("drive", "gdown")])
def test_a_missing_library_is_named_with_its_cure(monkeypatch, tmp_path, capsys, source, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["download", source, "x" * 20, str(tmp_path / "out")]) == 2
    assert "pip install 'wavefold[download]'" in capsys.readouterr().err


def test_flags_and_names_of_other_sources(tmp_path, capsys):
    assert main(["download", "ftp", "x", str(tmp_path)]) == 2
    assert main(["download", "drive", "x", str(tmp_path), "--include=*"]) == 2
    assert "flags of hub" in capsys.readouterr().err
