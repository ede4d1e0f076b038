"""Sets built to an address: the same bytes there, dataset.json last, and only what is missing."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tones, hashes, write_tone, write_tones

from shards import remote, upload
from shards.__main__ import main
from shards.errors import UserError
from shards.index import open_set
from shards.read import Reader
from shards.verify import verify

URL = "memory://store/mine"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Store"]:
    """An empty store in memory that notes what is done to it, and a cache of the test's own."""
    monkeypatch.setenv("WAVEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(upload, "POLL", 0.01)
    fs, _ = remote.filesystem(URL)
    fs.store.clear()
    yield Store(fs, monkeypatch)
    fs.store.clear()


class Store:
    """What was done to a store, in order, and what is in it."""

    def __init__(self, fs, monkeypatch):
        self.fs, self.done, self.fail = fs, [], set()
        put, rm = type(fs).put_file, type(fs).rm_file

        def put_file(fs, source, path, **words):
            name = path.rpartition("/")[2]
            if name in self.fail:
                raise ConnectionError("the line went dead")
            self.done.append(name)
            put(fs, source, path, **words)

        def rm_file(fs, path, **words):
            self.done.append(f"-{path.rpartition('/')[2]}")
            rm(fs, path, **words)

        monkeypatch.setattr(type(fs), "put_file", put_file)
        monkeypatch.setattr(type(fs), "rm_file", rm_file)

    def hashes(self, folder: Path) -> dict[str, str]:
        """The SHA-256 of what is in the store, by way of a folder."""
        self.fs.get("/store/mine/", str(folder), recursive=True)
        return hashes(folder)


def sent(audio: Path, **words: object) -> str:
    return build_tones(audio, URL, file_timeout=0, folds=2, shard_size="20KB", **words)  # type: ignore[arg-type]


def test_the_bytes_there_are_those_of_a_folder(small, store, tmp_path) -> None:
    said = sent(small)
    build_tones(small, tmp_path / "here", folds=2, shard_size="20KB")
    assert store.hashes(tmp_path / "there") == hashes(tmp_path / "here")
    assert URL in said and "uploaded" in said and str(tmp_path) not in said
    assert store.done[-1] == "dataset.json" and len(store.done) == len(set(store.done))
    assert verify(URL) == []
    built = open_set(URL)
    with Reader(built) as reader:
        assert np.isfinite(reader.read(np.arange(len(built.index)))).all()


def test_a_second_start_sends_what_is_missing(small, store) -> None:
    store.fail = {"samples-000001.tar"}
    with pytest.raises(UserError, match=r"line went dead.*start again to go on"):
        sent(small)
    assert "dataset.json" not in store.done
    with pytest.raises(UserError, match="not there"):
        open_set(URL)
    store.fail, before = set(), list(store.done)
    sent(small)
    assert "samples-000001.tar" in store.done[len(before) :]
    assert len(store.done) == len(set(store.done))
    store.fs.rm_file("/store/mine/samples-000000.tar")
    store.done.clear()
    assert "complete already" in sent(small)
    assert store.done == ["samples-000000.tar"]
    assert verify(URL) == []


def test_appending_elsewhere_fetches_the_set_first(small, store, tmp_path) -> None:
    sent(small)
    for n in range(3):
        write_tone(small / "low" / f"low-g9-{n}.wav", 440.0, seed=900 + n)
    build_tones(small, tmp_path / "other", folds=2, shard_size="20KB")
    store.done.clear()
    sent(small, append=True, stage=str(tmp_path / "elsewhere"))
    shards = [name for name in store.done if name.endswith(".tar")]
    assert shards and shards[0] > "samples-000000.tar"
    first = store.done.index("-dataset.json")
    replaced = {"index.npy", "recordings.jsonl"}
    assert replaced <= set(store.done[first:]) and store.done[-1] == "dataset.json"
    assert verify(URL) == [] and open_set(URL).info["recordings"] == 11


def test_overwrite_takes_the_old_set_away_first(small, store, tmp_path) -> None:
    sent(small)
    write_tones(tmp_path / "few", 2, {"high": 2000.0, "low": 440.0})
    with pytest.raises(UserError, match="other settings"):
        sent(small, seed=1)
    with pytest.raises(UserError, match="holds another set than was sent"):
        (tmp_path / "mine/set").mkdir(parents=True)
        sent(small, seed=1, stage=str(tmp_path / "mine"))
    store.done.clear()
    sent(tmp_path / "few", seed=1, overwrite=True, group_from=None)
    assert store.done.index("-dataset.json") < store.done.index("samples-000000.tar")
    assert verify(URL) == []
    build_tones(
        tmp_path / "few", tmp_path / "here", folds=2, shard_size="20KB", seed=1, group_from=None
    )
    assert store.hashes(tmp_path / "there") == hashes(tmp_path / "here")


@pytest.mark.slow
def test_to_a_bucket_and_back(small, bucket, tmp_path, capsys) -> None:
    words = ["--sample_rate=8000", "--segment_seconds=1", "--n_fft=512", "--hop_length=128"]
    words += ["--folds=2", "--file_timeout=0", "--workers=1", "--shard_size=200KB"]
    url = f"{bucket}/sets/mine"
    assert main(["build", str(small), url, *words]) == 0
    assert main(["build", str(small), str(tmp_path / "here"), *words]) == 0
    assert main(["verify", url]) == 0
    capsys.readouterr()
    assert main(["build", str(small), "s3://nobody/mine", *words]) == 2
    assert "s3://nobody/mine: not there; make its bucket" in capsys.readouterr().err
    fs, path = remote.filesystem(url)
    fs.get(f"{path}/", str(tmp_path / "there"), recursive=True)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    assert json.loads((tmp_path / "there/dataset.json").read_text())["samples"] == 12


@pytest.mark.slow
def test_a_repository_of_the_hub_is_read(tmp_path, tone_set, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from servers import Page, Site, folder_pages, serving

    files = folder_pages(tone_set)
    commit = "c" * 40

    def pages(path: str) -> Page | None:
        path = path.partition("?")[0]
        kind, base = {"Content-Type": "application/json"}, "/api/datasets/user/set"
        if path in (base, f"{base}/revision/main", f"{base}/revision/{commit}"):
            return 200, kind, json.dumps({"id": "user/set", "sha": commit}).encode()
        if path.startswith(f"{base}/paths-info") or path.startswith(f"{base}/tree"):
            tree = [
                {"type": "file", "path": x.name, "size": x.stat().st_size, "oid": "a" * 40}
                for x in sorted(tone_set.iterdir())
            ]
            return 200, kind, json.dumps(tree).encode()
        page = files("/" + path.rpartition("/")[2]) if "/resolve/" in path else None
        etag = {"X-Repo-Commit": commit, "ETag": '"' + "a" * 40 + '"'}
        return page and (page[0], page[1] | etag, page[2])

    with serving(Site(pages)) as site:
        constants = importlib.import_module("huggingface_hub.constants")
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the caller's is
        hub.HfFileSystem.clear_instance_cache()
        built, here = open_set("hf://datasets/user/set"), open_set(tone_set)
        with Reader(built) as there, Reader(here) as reader:
            numbers = np.arange(len(here.index))
            assert np.array_equal(there.read(numbers), reader.read(numbers))
        hub.HfFileSystem.clear_instance_cache()
