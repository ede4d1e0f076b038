"""The compiled copy against preadv: the same bytes, and errors where a map gives a signal."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import maps, read
from shards.index import open_set
from shards.maps import Maps
from shards.read import Reader

ROOT = Path(__file__).resolve().parent.parent
compiled = pytest.mark.skipif(maps.copy is None, reason="the kernel is not compiled here")


@pytest.mark.parametrize("how", [pytest.param("kernel", marks=compiled), "plain"])
def test_what_is_read_again_has_the_bytes_of_the_first_time(tone_set, monkeypatch, how):
    if how == "plain":
        monkeypatch.setattr(maps, "copy", None)
        monkeypatch.setattr(maps, "compiled", None)
    digests, digest = [], read.xxhash.xxh3_64_intdigest
    monkeypatch.setattr(
        read.xxhash, "xxh3_64_intdigest", lambda data: digests.append(0) or digest(data)
    )
    shard_set = open_set(tone_set)
    n, random = len(shard_set), np.random.default_rng(0)
    with Reader(shard_set) as reader:
        expected = reader.read(np.arange(n))
    digests.clear()
    with Reader(shard_set, maps=Maps(shard_set, mapped=True)) as reader:
        assert reader.maps.mapped == (how == "kernel")
        for numbers in (np.arange(0, n, 2), np.arange(n), random.integers(0, n, 5 * n)):
            assert np.array_equal(reader.read(numbers), expected[numbers])
        assert len(digests) == n, "each payload is checked once"
        assert reader.bytes == ((n + 1) // 2 + 6 * n) * expected[0].nbytes


@compiled
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200, 1024, 40_192])
def test_rows_of_any_size_and_alignment_are_copied(size):
    random = np.random.default_rng(size)
    data = random.integers(0, 256, (9, size + 3), np.uint8)
    places = random.integers(0, 9, 20)
    for skew in (0, 1, 16):
        block = np.zeros(skew + 20 * size + 7, np.uint8)
        out = block[skew : skew + 20 * size].reshape(20, size)
        assert maps.copy(maps.rows_of(out, np.arange(20)), maps.rows_of(data, places), size) == 20
        assert np.array_equal(out, data[places, :size])
        assert not block[:skew].any() and not block[skew + 20 * size :].any()


@pytest.mark.parametrize("how", [pytest.param("kernel", marks=compiled), "plain"])
def test_rows_are_taken_as_numpy_takes_them(monkeypatch, how):
    if how == "plain":
        monkeypatch.setattr(maps, "compiled", None)
    random = np.random.default_rng(0)
    for array in (random.random((9, 5, 3)), random.random((9, 70)).astype(np.float16)):
        for places in (random.integers(0, 9, 20, np.int32)[::2], np.zeros(0, np.int64)):
            out = np.empty_like(array, shape=(len(places), *array.shape[1:]))
            assert maps.take(array, places, out)
            assert np.array_equal(out, array[places])


@compiled
@pytest.mark.parametrize("place", [-1, 9, 2**62])
def test_no_row_is_taken_from_elsewhere(place):
    assert not maps.take(np.zeros((9, 4)), np.array([3, place]), np.zeros((2, 4)))


CUT = """
import faulthandler, os, sys
import numpy as np
from shards.index import open_set
from shards.maps import Maps
from shards.read import Reader

shard_set = open_set(sys.argv[1])
reader, numbers = Reader(shard_set, maps=Maps(shard_set, True)), np.arange(len(shard_set))
for _ in range(2):
    reader.read(numbers)
faulthandler.enable()  # takes SIGBUS for itself
os.truncate(sys.argv[2], 4096)
try:
    reader.read(numbers)
except Exception as error:
    print(type(error).__name__, error)
os.kill(os.getpid(), 7)  # one that is not ours still ends the process
"""


@compiled
def test_a_shard_truncated_under_its_map_is_an_error_that_names_it(tone_set, tmp_path):
    copy = shutil.copytree(tone_set, tmp_path / "set")
    last = sorted(copy.glob("samples-*.tar"))[-1]
    words = [sys.executable, "-c", CUT, str(copy), str(last)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith(f"ShardError {last}: ends before byte ")
    assert run.returncode == -7 and run.stderr.count("Bus error") == 1


def test_an_installation_needs_no_compiler(tmp_path):
    if not importlib.util.find_spec("setuptools"):  # importing it would change sys.path
        pytest.skip("there is no setuptools")
    words = [sys.executable, "setup.py", "build_ext", "-b", str(tmp_path), "-t", str(tmp_path)]
    env = os.environ | {"CC": "false", "LDSHARED": "false"}
    run = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "shards._native" in run.stdout + run.stderr  # it was tried
    assert not list(tmp_path.rglob("*.so"))
