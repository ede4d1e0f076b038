"""Shards that break while they are read: one line that names them, on every rank, and no hang."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from processes import environment, train_command

from shards import feed
from shards.errors import ShardError
from shards.feed import Reading
from shards.index import open_set
from shards.loader import Loader
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


def test_a_read_that_hangs_is_named_and_does_not_keep_the_process(copy, monkeypatch):
    first = sorted(copy.glob("samples-*.tar"))[0]
    steps = loader(copy).steps(0, 10)
    first.unlink()
    os.mkfifo(first)  # opening one waits until somebody writes
    monkeypatch.setattr(feed, "PATIENCE", 0.05)

    def warn(*words):
        opened = os.open(first, os.O_WRONLY | os.O_NONBLOCK)  # lets the reader go on, to fail
        os.close(opened)
        said.append(words[0] % words[1:])

    said = []
    monkeypatch.setattr(feed.log, "warning", warn)
    with pytest.raises(ShardError, match=first.name):
        list(steps)
    assert f"opening {first}" in said[0] and "step " in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", BREAK)
def test_both_of_two_processes_end_within_ten_seconds(copy, tmp_path, how):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{name: broken, dir: {tmp_path}}}\n"
        f"data: {{shards: {copy}, protocol: kfold}}\n"
        "model: {name: cnn_tiny, norm_batch: 2}\n"
        "train: {epochs: 100000, batch_size: 8, log_every: 1}\n"
    )
    words = train_command(1, str(config))
    ranks = [
        subprocess.Popen(
            words,
            env=environment()
            | {"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    try:
        last, metrics = sorted(copy.glob("samples-*.tar"))[-1], tmp_path / "broken/fold-0"
        while not (metrics / "metrics.jsonl").exists():
            assert [rank.poll() for rank in ranks] == [None, None]
            time.sleep(0.1)
        time.sleep(1)
        BREAK[how](last)
        began = time.monotonic()
        said = [rank.communicate(timeout=30)[1] for rank in ranks]
        assert time.monotonic() - began < 10
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1]
    errors = [line for text in said for line in text.splitlines() if "rror" in line]
    assert len(errors) == 1 and str(last) in errors[0]
    assert "Traceback" not in "".join(said)
