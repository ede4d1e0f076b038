"""Shards that break while they are read: one line that names them, on every rank, and no hang."""

import os
import shutil
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from processes import forked_ranks
from runs import config_file

from shards import feed, maps
from shards.errors import ShardError
from shards.feed import Reading
from shards.index import ShardSet, open_set
from shards.loader import Loader
from shards.maps import Maps
from shards.order import Order, plan_batch
from shards.read import Reader

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def many_threads(monkeypatch):
    """Although these samples are small."""
    monkeypatch.setattr(feed, "PART", 1)


@pytest.fixture
def copy(tone_set, tmp_path):
    return shutil.copytree(tone_set, tmp_path / "set")


def truncate(tar):
    os.truncate(tar, 4096)


def overwrite(tar):
    with open(tar, "r+b") as content:
        content.write(bytes(tar.stat().st_size))


def replace(tar):
    other = tar.with_name("other")
    other.write_bytes(bytes(tar.stat().st_size))
    other.rename(tar)


BREAK = {"truncate": truncate, "delete": os.unlink, "overwrite": overwrite, "replace": replace}


def loader(path, **reading):
    shard_set = open_set(path)
    n = len(shard_set.index)
    order, plan = Order(n, 6, seed=0), plan_batch(6, None, 1)
    return Loader(shard_set, np.arange(n), order, plan, 0, CPU, Reading(**reading))


@pytest.mark.parametrize("resident", ["none", "memory", "device"])
@pytest.mark.parametrize("how", BREAK)
def test_a_shard_that_breaks_is_named(copy, how, resident):
    last = sorted(copy.glob("samples-*.tar"))[-1]
    with closing(loader(copy, resident=resident).steps(0, 10**6)) as steps:
        for _ in range(20):  # every shard is open by now
            next(steps)
        BREAK[how](last)
        began = time.monotonic()
        with pytest.raises(ShardError, match=f"{last}: "):
            while time.monotonic() < began + 10:
                next(steps)


@pytest.mark.skipif(maps.compiled is None, reason="the kernel is not compiled here")
def test_an_index_that_was_cut_short_is_named(copy):
    index = copy / "index.npy"
    with closing(loader(copy).steps(0, 10**6)) as steps:
        next(steps)
        os.truncate(index, 0)
        with pytest.raises(ShardError, match=f"{index}: cut short while it was in use"):
            for _ in range(1000):  # many were read ahead
                next(steps)


def test_a_shard_that_changed_while_it_was_closed_is_named(copy, monkeypatch):
    """Where a set has more shards than a reader holds open: its payloads were checked before."""
    monkeypatch.setattr(ShardSet, "open_at_most", property(lambda self: 1))
    shard_set = open_set(copy)
    first, numbers = shard_set.shard_paths[0], np.arange(len(shard_set))
    with Reader(shard_set, maps=Maps(shard_set, mapped=True)) as reader:
        assert np.array_equal(reader.read(numbers), reader.read(numbers))
        other = first.with_name("other")
        other.write_bytes(bytes(first.stat().st_size))
        other.rename(first)
        with pytest.raises(ShardError, match=f"{first}: changed while it was in use"):
            reader.read(numbers)
        with (
            Reader(shard_set, maps=reader.maps) as second,
            pytest.raises(ShardError, match=f"{first}: changed while it was in use"),
        ):
            second.read(numbers)


def test_one_changed_byte_is_found_by_the_checksum(copy):
    shard_set = open_set(copy)
    row = shard_set.index[7]
    tar = shard_set.shard_file(row["shard"])
    before = Reader(shard_set).read(np.array([7]))
    with open(tar, "r+b") as content:
        content.seek(int(row["offset"]) + 99)
        byte = content.read(1)
        content.seek(int(row["offset"]) + 99)
        content.write(bytes([byte[0] ^ 1]))
    with Reader(shard_set) as reader, pytest.raises(ShardError, match=f"{tar}: other bytes"):
        reader.read(np.array([7]))
    with Reader(shard_set, check=False) as reader:
        assert np.count_nonzero(reader.read(np.array([7])) != before) == 1


def test_a_read_that_hangs_is_named(copy, monkeypatch):
    first = sorted(copy.glob("samples-*.tar"))[0]
    steps = loader(copy).steps(0, 10)
    first.unlink()
    os.mkfifo(first)  # opening one waits until somebody writes
    monkeypatch.setattr(feed, "PATIENCE", 0.05)

    def warn(*words):
        said.append(words[0] % words[1:])
        if "opening" in said[-1]:  # let readers go on, to fail
            opened.append(os.open(first, os.O_RDWR))

    said, opened = [], []
    monkeypatch.setattr(feed.log, "warning", warn)
    with pytest.raises(ShardError, match=first.name):
        list(steps)
    for writer in opened:  # till now, for a thread that opens it later than the others
        os.close(writer)
    assert not [thread for thread in threading.enumerate() if thread.name == "shards"]
    assert f"opening {first}" in said[-1] and "step " in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", BREAK)
def test_both_of_two_processes_end_within_ten_seconds(copy, tmp_path, how):
    train = {"epochs": 100000, "log_every": 1}
    config = config_file(
        tmp_path, copy, "", run={"name": "broken"}, model={"norm_batch": 2}, train=train
    )
    last, metrics = sorted(copy.glob("samples-*.tar"))[-1], tmp_path / "broken/fold-0/metrics.jsonl"
    began = []

    def break_it():
        while not metrics.exists() or metrics.read_text().count("\n") < 20:
            time.sleep(0.05)
        BREAK[how](last)
        began.append(time.monotonic())

    ranks = forked_ranks(2, config, meanwhile=break_it)
    assert time.monotonic() - began[0] < 10
    assert [code for code, _ in ranks] == [1, 1]
    errors = [line for _, said in ranks for line in said.splitlines() if "rror" in line]
    assert len(errors) == 1 and str(last) in errors[0]
    assert not any("Traceback" in said for _, said in ranks)
