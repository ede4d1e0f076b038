"""Recordings from elsewhere: the bytes of a local build; what cannot be had costs itself alone."""

import importlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import build_tones, hashes, write_tone
from servers import Page, Site, folder_pages, serving

from shards import remote
from shards.__main__ import main
from shards.cache import temporary
from shards.crew import Worker
from shards.errors import UserError
from shards.remote import FetchError, Url, is_url, list_files, read_bytes
from shards.root import local, read_header, release
from shards.transfer import fetch


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and little patience."""
    monkeypatch.setenv("WAVEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    yield tmp_path / "cache"
    release()


def built(audio: object, out: Path, **words: object) -> dict[str, str]:
    build_tones(audio, out, file_timeout=0, group_from=None, **words)  # type: ignore[arg-type]
    return hashes(out)


@pytest.fixture
def odd(small: Path) -> Path:
    """Names that an address has to spell otherwise."""
    for n, name in enumerate(("a b.wav", "100%.wav", "é+ü#1.wav", "x.y.flac")):
        write_tone(small / "low" / "deeper" / name, 440.0, seed=50 + n)
    write_tone(small / "low" / ".hidden.wav", 440.0)
    (small / "low" / "broken.wav").write_bytes(b"RIFF, or so")
    (small / "notes.txt").write_text("no audio")
    return small


def test_what_is_an_address() -> None:
    assert all(map(is_url, ("s3://b/x", "http://h", "hf://datasets/u/r", "HTTPS://h/x")))
    assert not any(map(is_url, ("audio", "/a/b", "a:b", "C:/x", "a//b", "://x")))
    assert str(Url("http://h/a") / "b c/d.wav") == "http://h/a/b%20c/d.wav"
    assert str(Url("s3://b/a/") / "b c/d.wav") == "s3://b/a/b c/d.wav"
    assert Url("s3://b/a/t.CSV").suffix == ".CSV" and str(Url("s3://b/a").parent) == "s3://b"


def test_a_web_folder_gives_the_bytes_of_the_folder(odd, tmp_path, own_cache) -> None:
    here = built(odd, tmp_path / "here")
    with serving(Site(folder_pages(odd))) as site:
        there = built(site.url, tmp_path / "there")
        assert main(["verify", str(tmp_path / "there"), f"--audio={site.url}"]) == 0
    assert there == here
    assert "broken.wav" in (tmp_path / "there/rejected.csv").read_text()
    assert not list(own_cache.glob("part.*"))


def test_what_workers_fetched_goes_once_they_are_gone(small, tmp_path, monkeypatch) -> None:
    """Each holds its last recording for as long as it lives."""
    events: list[str] = []
    stop = Worker.stop
    monkeypatch.setattr(Worker, "stop", lambda self: (stop(self), events.append("stopped")))
    monkeypatch.setattr("shards.root.sweep", lambda folder: events.append(f"swept {folder}"))
    build_tones(small, tmp_path / "set", folds=2)
    assert "stopped" in events and events[-1] == f"swept {tmp_path / 'cache'}"


def test_headers_are_read_without_the_rest(tmp_path) -> None:
    write_tone(tmp_path / "long.wav", 440.0, seconds=60)
    with serving(Site(folder_pages(tmp_path))) as site:
        found = read_header(Url(site.url), "long.wav")
        fetched = [entry for entry in site.asked if entry[0] == "GET"]
    assert (found.frames, found.sample_rate) == (60 * 8000, 8000)
    assert fetched and all(wanted for _, _, wanted in fetched)


def test_a_server_without_ranges_serves_too(small, tmp_path) -> None:
    pages = folder_pages(small)

    def plain(path: str) -> Page | None:
        page = pages(path)
        return page and (page[0], {"Content-Type": page[1].get("Content-Type", "")}, page[2])

    with serving(Site(plain)) as site:
        assert built(site.url, tmp_path / "there") == built(small, tmp_path / "here")


@pytest.mark.parametrize("where", ["table there", "table here"])
def test_tables_name_recordings_elsewhere(small, tmp_path, where) -> None:
    files = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.wav"))
    rows = ["path,label", *(f"{path},{path.split('/')[0]}" for path in files)]
    (small / "list.csv").write_text("\n".join(rows))
    here = built(small / "list.csv", tmp_path / "here")
    with serving(Site(folder_pages(small))) as site:
        if where == "table there":
            there = built(f"{site.url}/list.csv", tmp_path / "there")
        else:
            rows[1:] = [f"{site.url}/{row}" for row in rows[1:]]
            (tmp_path / "list.csv").write_text("\n".join(rows))
            there = built(tmp_path / "list.csv", tmp_path / "there", audio_root=site.url)
    assert there == here


def test_addresses_of_other_places_stay_addresses(small, tmp_path) -> None:
    with serving(Site(folder_pages(small))) as site:
        files = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.wav"))
        rows = [f"{site.url}/{path}\t{path.split('/')[0]}" for path in files]
        (tmp_path / "list.tsv").write_text("\n".join(["path\tlabel", *rows]))
        built(tmp_path / "list.tsv", tmp_path / "set")
        assert main(["verify", str(tmp_path / "set")]) == 0
    assert site.url in (tmp_path / "set/recordings.jsonl").read_text()


def test_pieces_of_a_recording_fetch_it_once(tmp_path) -> None:
    write_tone(tmp_path / "a" / "long.wav", 440.0, seconds=8)
    with serving(Site(folder_pages(tmp_path))) as site:
        for _ in range(4):
            with local(Url(site.url), "a/long.wav") as file:
                assert file.read_bytes() == (tmp_path / "a/long.wav").read_bytes()
        assert sum(entry[0] == "GET" for entry in site.asked) == 1


def flaky(pages, path: str, failures: int, status: int = 503):
    """Pages that fail so many times for one path."""
    left = {path: failures}

    def answer(asked: str) -> Page | None:
        if left.get(asked, 0) > 0:
            left[asked] -= 1
            return status, {}, b"busy"
        return pages(asked)

    return answer


def test_a_busy_server_is_asked_again(small, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    here = built(small, tmp_path / "here")
    with serving(Site(flaky(folder_pages(small), "/low/low-g0-0.wav", 4))) as site:
        assert built(site.url, tmp_path / "there") == here
    assert "503; trying again" in caplog.text


@pytest.mark.parametrize(("status", "told"), [(503, "answered 503 (tried 6 times)"), (404, "not")])
def test_what_cannot_be_had_is_a_row(small, tmp_path, status, told) -> None:
    with serving(Site(flaky(folder_pages(small), "/low/low-g0-0.wav", 10**6, status))) as site:
        built(site.url, tmp_path / "set", folds=3)
    rejected = (tmp_path / "set/rejected.csv").read_text().splitlines()
    assert len(rejected) == 2
    assert rejected[1].startswith(f"low/low-g0-0.wav,could not be fetched: {told}")


def test_strict_does_not_go_on_without_one(small, tmp_path) -> None:
    (small / "list.csv").write_text("path,label\nlow/low-g0-0.wav,a\nlow/gone.wav,b\n")
    pages = folder_pages(small)
    told = r"--strict: 'low/gone.wav' could not be fetched"
    site = Site(lambda path: None if path.endswith("/") else pages(path))
    with serving(site), pytest.raises(UserError, match=told):
        built(f"{site.url}/list.csv", tmp_path / "set", strict=True)


def test_a_stall_and_a_cut_are_tries(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(remote, "STALL", 1.0)
    (tmp_path / "data").write_bytes(bytes(range(256)) * 4096)
    pages, stalls, over = folder_pages(tmp_path), [1], threading.Event()

    def slow(path: str) -> Page | None:
        if stalls:
            stalls.pop()
            over.wait(60)
        return pages(path)

    with serving(Site(slow, cut={"/data": 2})) as site, local(Url(site.url), "data") as file:
        over.set()
        assert file.read_bytes() == (tmp_path / "data").read_bytes()
    assert len(site.asked) == 3


@pytest.mark.parametrize(
    ("marks", "told", "ranges"),
    [
        (["a", "a"], {}, [None, "bytes=5000-"]),  # taken up where it was cut
        (["a", "b"], {}, [None, "bytes=5000-"]),  # If-Range: all of the new one comes
        (["a", "b"], {"deaf": True}, [None, "bytes=5000-", None]),  # a server that ignores it
        (["W/a", "W/a"], {}, [None, None]),  # says itself that the bytes may differ
        ([None, None], {}, [None, None]),
    ],
)
def test_a_cut_transfer_goes_on_if_the_file_is_the_same(tmp_path, marks, told, ranges) -> None:
    contents = {mark: bytes([n + 1]) * 10**4 for n, mark in enumerate(marks)}
    left = list(marks)

    def page(path: str) -> Page:
        mark = left.pop(0) if len(left) > 1 else left[0]
        return 200, {"Accept-Ranges": "bytes"} | ({"ETag": mark} if mark else {}), contents[mark]

    with serving(Site(page, cut={"/x": 1}, **told)) as site:
        fetch(f"{site.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == contents[marks[-1]]
    assert [asked for _, _, asked in site.asked] == ranges


def test_temporaries_of_the_dead_are_swept(own_cache) -> None:
    from shards.cache import sweep

    with temporary(".wav") as mine:
        (own_cache / "part.0.left.wav").write_bytes(b"of a process that was killed")
        sweep(own_cache)
        assert [file.name for file in own_cache.iterdir()] == [Path(mine.name).name]
    assert not list(own_cache.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["build", "{site}/nowhere", "{out}"], "not there; give an address that can be listed"),
        (["build", "{site}/nowhere.csv", "{out}"], "not there"),
        (["build", "{site}/secret", "{out}"], "no access"),
        (["build", "nosuch://x/y", "{out}"], "nosuch"),
        (["build", "{site}/low", "{out}", "--audio_root=x"], "for tables only"),
        (["build", "{site}", "{site}/set"], "cannot be written to"),
        (["info", "{site}/nowhere"], "not there"),
        (["verify", "{site}/nowhere"], "no shard set"),
        (["reset", "{site}/nowhere"], "your store's own tool"),
        (["merge", "s3://b/set"], "merged on a disk"),
        (["build", "{site}", "s3://b/set", "--part=0/2"], "leave --part out"),
        (["build", "{site}", "{out}", "--stage=x"], "for sets at an address"),
    ],
)
def test_words_that_lead_nowhere(small, tmp_path, capsys, words, told) -> None:
    site = Site(lambda path: (403, {}, b"") if "secret" in path else folder_pages(small)(path))
    with serving(site):
        words = [word.format(site=site.url, out=tmp_path / "out") for word in words]
        assert main(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_driver_names_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "s3fs", None)
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"s3fs is missing; pip install 'wavefold\[s3\]'"):
        read_bytes("s3://b/x")


@pytest.mark.slow
def test_a_bucket_gives_the_bytes_of_the_folder(odd, bucket, tmp_path) -> None:
    fs, path = remote.filesystem(bucket)
    fs.put(f"{odd}/", f"{path}/audio/", recursive=True)
    assert built(f"{bucket}/audio", tmp_path / "there") == built(odd, tmp_path / "here")
    with pytest.raises(UserError, match="s3://nobody/audio: not there"):
        built("s3://nobody/audio", tmp_path / "other")
    assert list_files(Url(f"{bucket}/nothing")) == []


def test_no_keys_is_one_error(monkeypatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*words: object) -> None:
        raise NoCredentialsError

    with pytest.raises(FetchError, match="no access; log in"):
        remote.retried("memory://x", refuse)
