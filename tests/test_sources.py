"""Downloads, each from a server on the loopback: whole, cut off, refused, started again."""

import csv
import importlib
import io
import json
import sys

import numpy as np
import pytest
import soundfile
from servers import Page, Site, serving

from shards.__main__ import main
from shards.errors import UserError
from shards.sources import youtube

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def wav(seed: int, n: int = 40000) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).standard_normal(n)
    soundfile.write(buffer, 0.1 * noise, 8000, format="WAV")
    return buffer.getvalue()


#: Half of b is more than gdown's first chunk of 512 KiB.
SOUNDS = {"/a.wav": wav(0), "/b.wav": wav(1, 700_000), "/c.wav": wav(2)}


def sound(path: str) -> Page | None:
    if path not in SOUNDS:
        return None
    headers = {"Content-Type": "audio/x-wav", "Accept-Ranges": "bytes", "ETag": f'"{path[1:]}"'}
    return 200, headers, SOUNDS[path]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def outcomes(out):
    with open(out / "outcomes.csv", newline="") as text:
        return list(csv.DictReader(text))


# --- youtube -----------------------------------------------------------------------------------


def test_links_come_down_whole_and_only_once(tmp_path, capsys):
    links, out = tmp_path / "links.csv", tmp_path / "100% out"
    with serving(Site(sound, cut={"/b.wav": 2})) as site:
        links.write_text(
            f"link,label\n# mine\n{site.url}/a.wav,dog bark\n{site.url}/b.wav rain\n"
            f"{site.url}/gone.wav,rain\n\n{site.url}/c.wav\n"
        )
        assert main(["download", "youtube", str(links), str(out)]) == 0
        first = {row["link"].rpartition("/")[2]: row for row in outcomes(out)}
        asked = len(site.asked)
        gets = [ranges for method, path, ranges in site.asked if path == "/b.wav"]
        assert main(["download", "youtube", str(links), str(out)]) == 0
        again = site.asked[asked:]
    assert {name: row["status"] for name, row in first.items()} == {
        "a.wav": "done", "b.wav": "done", "gone.wav": "failed", "c.wav": "done",
    }  # fmt: skip
    assert first["gone.wav"]["reason"].count("404") and "\x1b" not in first["gone.wav"]["reason"]
    for name, label in (("a.wav", "dog bark"), ("b.wav", "rain"), ("c.wav", "unlabelled")):
        file = out / first[name]["file"]
        assert file.parent.name == label
        assert file.read_bytes() == SOUNDS[f"/{name}"]
    half = len(SOUNDS["/b.wav"]) // 2
    assert any(r and 0 < int(r[6:-1]) <= half for r in gets)  # it went on, not over again
    assert {path for _, path, _ in again} == {"/gone.wav"}
    assert len([f for f in out.rglob("*") if f.is_file()]) == 4
    assert "downloaded 0, there already 3, failed 1" in capsys.readouterr().out


def test_a_partial_file_of_a_killed_download_goes_on(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"
    with serving(Site(sound)) as site:
        links.write_text(f"{site.url}/a.wav x\n")
        assert main(["download", "youtube", str(links), str(out)]) == 0
        (row,) = outcomes(out)
        file, whole = out / row["file"], SOUNDS["/a.wav"]
        file.unlink()
        file.with_name(file.name + ".part").write_bytes(whole[:30000])
        assert main(["download", "youtube", str(links), str(out)]) == 0
        assert any(r and r.startswith("bytes=30000-") for _, _, r in site.asked)
    assert file.read_bytes() == whole


def test_a_changed_label_moves_the_file(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"
    with serving(Site(sound)) as site:
        for label in ("old", "new"):
            links.write_text(f"{site.url}/a.wav {label}\n")
            assert main(["download", "youtube", str(links), str(out)]) == 0
        assert len([1 for method, _, _ in site.asked if method == "GET"]) <= 2
    assert [f.parent.name for f in out.rglob("*.wav")] == ["new"]


def test_a_page_of_several_is_no_recording(tmp_path):
    links, out = tmp_path / "links.txt", tmp_path / "out"

    def page(path: str) -> Page | None:
        html = "<html><title>two</title>" + "".join(
            f'<audio controls><source src="/{name}.wav" type="audio/wav"></audio>' for name in "ac"
        )
        return sound(path) or (200, {"Content-Type": "text/html"}, html.encode())

    with serving(Site(page)) as site:
        links.write_text(f"{site.url}/list x\n{site.url}/a.wav x\n")
        assert main(["download", "youtube", str(links), str(out)]) == 0
    assert [row["status"] for row in outcomes(out)] == ["failed", "done"]
    assert "playlist" in outcomes(out)[0]["reason"]
    assert len(list(out.rglob("*.wav"))) == 1


def test_nothing_had_is_exit_code_1(tmp_path, capsys):
    links = tmp_path / "links.txt"
    with serving(Site(sound)) as site:
        links.write_text(f"{site.url}/gone.wav x\n")
        with pytest.raises(SystemExit) as end:
            main(["download", "youtube", str(links), str(tmp_path / "out")])
    assert end.value.code == 1
    assert "failed 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no link in it"),
        ("# only\n\n", "no link in it"),
        ("dog.wav\n", "line 1: 'dog.wav' is no link"),
        ("http://x/a ../../etc\n", "cannot name a folder"),
        ("http://x/a dog\nhttp://x/a cat\n", "line 2: http://x/a is 'dog' and 'cat'"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, told):
    file = tmp_path / "links.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        youtube.read_links(file)


def test_ways_to_write_a_list(tmp_path):
    file = tmp_path / "links.csv"
    file.write_text('http://x/#t=1,"dog bark" # best\nhttp://x/b\train\n"http://x/c,d" e\nhttp://y')
    assert youtube.read_links(file) == {
        "http://x/#t=1": "dog bark", "http://x/b": "rain", "http://x/c,d": "e",
        "http://y": "unlabelled",
    }  # fmt: skip


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
    ],
)
def test_what_the_hub_cannot_give_is_one_line(hugging_face, tmp_path, capsys, words, told):
    assert main(["download", "hub", words[0], str(tmp_path / "out"), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


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
