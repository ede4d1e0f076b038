"""Shard sets at an address: each shard fetched once, whole, checked, whatever the server does."""

import fcntl
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, environment, forked
from runs import config_file, records
from servers import Page, Site, folder_pages, serving

from shards import remote
from shards.cache import Cache, entries, locked
from shards.durable import sha256
from shards.errors import ShardError, UserError
from shards.index import open_set
from shards.read import Reader

PATIENCE = "import shards.remote as r; r.STALL, r.PAUSE = 1.0, 0.01; "
READ = PATIENCE + (
    "import sys, hashlib, numpy as np; from shards.index import open_set; "
    "from shards.read import Reader; s = open_set(sys.argv[1]); r = Reader(s); "
    "print(hashlib.sha256(r.read(np.arange(len(s.index))).tobytes()).hexdigest())"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, and little patience."""
    monkeypatch.setenv("WAVEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    return tmp_path / "cache"


def gets(site: Site) -> Counter[str]:
    """How often each path was asked for."""
    return Counter(path for method, path, _ in site.asked if method == "GET")


def python(code: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(), cwd=ROOT, text=True, **pipes)


def all_samples(path: object, **words: float) -> np.ndarray:
    shard_set = open_set(str(path), **words)
    with Reader(shard_set) as reader:
        return reader.read(np.arange(len(shard_set.index)))


def odd_weather(root: Path, rough: bool = True):
    """A folder by a server that first answers 503, a wrong byte, half a file, or nothing for 2 s.

    Which it is depends on the shard, and each comes once.
    """
    pages, asked = folder_pages(root), Counter[str]()

    def answer(path: str) -> Page | None:
        asked[path] += 1
        page = pages(path)
        if page and rough and asked[path] == 1:
            if path.endswith("000000.tar"):
                return 503, {}, b"busy"
            if path.endswith("000001.tar"):
                return page[0], page[1], page[2][:-1] + b"x"
            if path.endswith("000002.tar"):
                time.sleep(2)
            if path.endswith("index.npy"):
                return page[0], page[1], page[2][:100]
        return page

    return Site(answer, cut={"/recordings.jsonl": 1, "/samples-000000.tar": 2})


def test_a_set_at_an_address_is_the_set(tone_set, cache) -> None:
    here = open_set(tone_set)
    with serving(Site(folder_pages(tone_set))) as site:
        there = open_set(site.url)
        assert np.array_equal(all_samples(site.url), all_samples(tone_set))
        again = all_samples(site.url)
        counts = gets(site)
    assert np.array_equal(again, all_samples(tone_set))
    assert there.info == here.info and np.array_equal(there.index, here.index)
    assert np.array_equal(there.stats, here.stats)
    assert list(there.recordings()) == list(here.recordings())
    assert str(there) == site.url
    assert all(n == 1 for path, n in counts.items() if path != "/dataset.json")
    known = {entry["sha256"] for entry in [*here.info["shards"], *here.info["files"].values()]}
    assert {file.name for file in entries(cache)} == known


@pytest.mark.usefixtures("no_pictures")
def test_training_ends_in_the_same_weights(tone_set, tmp_path, monkeypatch) -> None:
    """Through 503, a wrong byte, cut connections and a stall, as from the disk."""
    config = config_file(tmp_path, tone_set, "", train={"max_steps": 4, "log_every": 1})
    monkeypatch.setattr(remote, "STALL", 1.0)
    assert forked(config, "--run.name=here")[0] == 0
    with serving(odd_weather(tone_set)) as site:
        words = ["--run.name=there", f"--data.shards={site.url}"]
        code, said = forked(config, *words)
        counts = gets(site)
    assert code == 0, said[-2000:]
    assert said.count("trying again") >= 6
    assert counts["/samples-000000.tar"] == 3 and counts["/samples-000001.tar"] == 2
    weights = [tmp_path / name / "fold-0/best.safetensors" for name in ("here", "there")]
    assert len({sha256(file) for file in weights}) == 1
    logged = [weights[1].with_name("metrics.jsonl"), weights[0].with_name("metrics.jsonl")]
    lines = records(logged[0].parent)
    last = [line for line in lines if "bytes_per_s" in line][-1]
    files = len(open_set(tone_set).info["shards"]) + 2  # and index.npy, stats.npy
    assert last["cache_misses"] >= files - 1 and "cache_hits" not in logged[1].read_text()


def test_two_processes_fetch_a_shard_once(tone_set) -> None:
    pages = folder_pages(tone_set)

    def slow(path: str) -> Page | None:
        time.sleep(0.3 * path.endswith(".tar"))
        return pages(path)

    with serving(Site(slow)) as site:
        readers = [python(READ, site.url) for _ in range(2)]
        said = {reader.communicate(timeout=60)[0] for reader in readers}
        counts = gets(site)
    assert said == {hashlib.sha256(all_samples(tone_set).tobytes()).hexdigest() + "\n"}
    assert all(n == 1 for path, n in counts.items() if path != "/dataset.json")


def test_killed_while_it_fetches_it_goes_on(tone_set, cache) -> None:
    pages, waiting = folder_pages(tone_set), [True]

    def hanging(path: str) -> Page | None:
        while path.endswith("000001.tar") and waiting:
            time.sleep(0.01)
        return pages(path)

    with serving(Site(hanging)) as site:
        reader = python(READ, site.url)
        while "/samples-000001.tar" not in gets(site):
            assert reader.poll() is None
            time.sleep(0.01)
        os.kill(reader.pid, signal.SIGKILL)
        reader.communicate()
        assert list(cache.glob("part.*"))
        waiting.clear()
        assert np.array_equal(all_samples(site.url), all_samples(tone_set))
        assert gets(site)["/samples-000000.tar"] == 1
    assert not list(cache.glob("part.*"))


def room_for(folder: Path, shards: float) -> float:
    """Gigabytes for what stands beside the tars and so many of the largest shard."""
    info = json.loads((folder / "dataset.json").read_text())
    beside = sum(entry["bytes"] for entry in info["files"].values())
    return (beside + shards * max(entry["bytes"] for entry in info["shards"])) / 1e9


def test_the_cache_keeps_its_bound(tone_set, cache) -> None:
    limit = room_for(tone_set, 2.1)
    with serving(Site(folder_pages(tone_set))) as site:
        shard_set = open_set(site.url, cache_gb=limit)
        with Reader(shard_set) as reader:
            for number in np.random.default_rng(0).permutation(len(shard_set.index))[:40]:
                reader.read(np.array([number]))
                assert sum(file.stat().st_size for file in cache.iterdir()) <= limit * 1e9
        assert max(gets(site).values()) > 2  # so shards did go, and came again
        assert np.array_equal(all_samples(site.url, cache_gb=limit), all_samples(tone_set))
        with pytest.raises(UserError, match="the index and two shards of"):
            open_set(site.url, cache_gb=room_for(tone_set, 1.5))


def test_what_is_in_use_stays(tone_set, cache, caplog) -> None:
    info = open_set(tone_set).info
    with serving(Site(folder_pages(tone_set))) as site:
        small = Cache(1e-9, cache)
        first, second, third = info["shards"][:3]
        held = small.open(f"{site.url}/{first['name']}", first)
        os.close(small.open(f"{site.url}/{second['name']}", second))
        os.close(small.open(f"{site.url}/{third['name']}", third))
        assert {file.name for file in entries(cache)} == {first["sha256"], third["sha256"]}
        assert caplog.text.count("are in use at once") == 1, "said once, not at every shard"
        os.close(held)
        small.make_room()
        assert not entries(cache)


def test_the_longest_unused_goes_first(tone_set, cache) -> None:
    info = open_set(tone_set).info
    sizes = [entry["bytes"] for entry in info["shards"][:3]]
    with serving(Site(folder_pages(tone_set))) as site:
        two = Cache((sum(sizes) - 1) / 1e9, cache)
        for number in (0, 1, 0, 2):  # so 1 is the oldest when 2 comes
            entry = info["shards"][number]
            os.close(two.open(f"{site.url}/{entry['name']}", entry))
            time.sleep(0.02)
        assert (two.hits, two.misses) == (1, 3)
    names = {info["shards"][n]["sha256"] for n in (0, 2)}
    assert {file.name for file in entries(cache)} == names


def test_next_shards_come_while_nobody_waits(tone_set, cache) -> None:
    with serving(Site(folder_pages(tone_set))) as site:
        shard_set = open_set(site.url)
        shard_set.prefetch([2, 0, 2])
        wanted = {shard_set.info["shards"][n]["sha256"] for n in (0, 2)}
        until = time.monotonic() + 20
        while not wanted <= {file.name for file in entries(cache)}:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert gets(site)["/samples-000002.tar"] == 1
        assert "/samples-000001.tar" not in gets(site)
        there, here = shard_set.shard_file(1), tone_set / "samples-000001.tar"
        assert there.read_bytes() == here.read_bytes()


def test_a_byte_that_stays_wrong_is_an_error(tone_set, tmp_path) -> None:
    bad = shutil.copytree(tone_set, tmp_path / "bad")
    shard = bad / "samples-000001.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    expected = open_set(tone_set).info["shards"][1]["sha256"]
    with serving(Site(folder_pages(bad))) as site:
        with pytest.raises(ShardError) as error:
            all_samples(site.url)
        assert gets(site)["/samples-000001.tar"] == remote.TRIES
    said = str(error.value)
    for word in (f"{site.url}/{shard.name}", hashlib.sha256(data).hexdigest(), expected):
        assert word in said


def test_a_full_disk_is_named_and_a_read_only_one_is_read(
    tone_set, small_disk, cache, monkeypatch
) -> None:
    with serving(Site(folder_pages(tone_set))) as site:
        assert np.array_equal(all_samples(site.url), all_samples(tone_set))
        monkeypatch.setattr(os, "utime", lambda *words: os.chdir("/nowhere"))  # an OSError
        assert np.array_equal(all_samples(site.url), all_samples(tone_set))
        monkeypatch.setenv("WAVEFOLD_CACHE", str(small_disk))
        with pytest.raises(ShardError, match=f"tar: .*No space left on device: '{small_disk}'"):
            all_samples(site.url)
        gc.collect()  # what is open keeps the disk


def test_who_waits_for_a_fetch_does_not_wait_for_its_readers(tmp_path, monkeypatch) -> None:
    """A shard that has come keeps its inode under its new name, and with it the readers' lock."""
    part, file, found = tmp_path / "part.1.x", tmp_path / "x", []
    opened, flock = threading.Event(), fcntl.flock

    def wait() -> None:
        with locked(part) as is_mine:
            found.append(is_mine)

    reader = os.open(part, os.O_RDWR | os.O_CREAT)
    flock(reader, fcntl.LOCK_SH)
    monkeypatch.setattr(fcntl, "flock", lambda *words: opened.set() or flock(*words))
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert opened.wait(60)
    part.rename(file)
    waiting.join(60)
    os.close(reader)
    assert found == [False] and file.exists()
