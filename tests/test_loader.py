"""Batches against the tars read by tarfile, and against the same batches on other ranks."""

import gc
import io
import json
import os
import shutil
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_plainly

from shards import feed, resident
from shards import loader as loader_module
from shards.errors import ShardError, UserError
from shards.feed import Reading, Slot
from shards.index import ShardSet, open_set
from shards.loader import Batch, Loader, evaluation_batches
from shards.order import Order, plan_batch
from shards.read import Reader
from shards.selection import deal

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def many_threads(monkeypatch):
    """Although these samples are small."""
    monkeypatch.setattr(feed, "PART", 1)


def by_tarfile(path):
    """Every sample as (array, its JSON), in the order of the tars, by the standard library."""
    samples = []
    for shard in sorted(path.glob("samples-*.tar")):
        with tarfile.open(shard) as tar:
            content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        for name in content:
            if name.endswith(".npy"):
                samples.append(
                    (np.load(io.BytesIO(content[name])), json.loads(content[name[:-3] + "json"]))
                )
    return samples


def test_reader_gives_what_tarfile_gives(tone_set):
    shard_set = open_set(tone_set)
    samples = by_tarfile(tone_set)
    assert len(samples) == len(shard_set.index) > 20
    numbers = np.random.default_rng(0).permutation(len(samples))
    with Reader(shard_set) as reader:
        got = reader.read(numbers)
    for number, array in zip(numbers, got, strict=True):
        assert np.array_equal(array, samples[number][0])
        assert shard_set.index["label"][number] == samples[number][1]["label"]


def collect(tone_set, world_size, microbatch, start=0):
    shard_set = open_set(tone_set)
    selection = np.flatnonzero(shard_set.index["fold"] != 0)
    order = Order(len(selection), 12, seed=3)
    plan = plan_batch(12, microbatch, world_size)
    loaders = [Loader(shard_set, selection, order, plan, r, CPU) for r in range(world_size)]
    steps = zip(*(loader.steps(start, 7) for loader in loaders), strict=True)
    return [[kept(batch) for rank in ranks for batch in rank] for ranks in steps]


def kept(batch):
    """A copy: the buffers are used again."""
    return Batch(batch.x.clone(), batch.y.clone(), batch.numbers.copy(), batch.places)


def test_the_same_global_batches_on_1_2_and_3_ranks_and_after_a_resume(tone_set):
    whole = collect(tone_set, 1, None)
    for world_size, microbatch, start in [(1, 4, 0), (2, 3, 0), (3, None, 0), (2, 6, 5)]:
        parts = collect(tone_set, world_size, microbatch, start)
        assert len(parts) == 7 - start
        for batches, (one,) in zip(parts, whole[start:], strict=True):
            assert torch.equal(torch.cat([b.x for b in batches]), one.x)
            assert torch.equal(torch.cat([b.y for b in batches]), one.y)
            assert np.array_equal(np.concatenate([b.places for b in batches]), np.arange(12))


def test_evaluation_sees_every_sample_once_in_order(tone_set):
    shard_set = open_set(tone_set)
    selection, found = np.arange(1, len(shard_set.index), 2), {}
    for world_size in (1, 2, 3, 5):
        for size in (1, 4, 100):
            ranks = [
                list(evaluation_batches(shard_set, selection, size, rank, world_size, CPU))
                for rank in range(world_size)
            ]
            assert len({len(batches) for batches in ranks}) == 1, "a rank that waits for another"
            assert len({batch.x.shape for batches in ranks for batch in batches}) == 1
            held = [list(b.numbers) for batches in ranks for b in batches if b.numbers[0] >= 0]
            assert found.setdefault(size, held) == held, "batches that one rank does not compute"
            numbers = np.concatenate([b.numbers for batches in ranks for b in batches])
            places = np.concatenate([b.places for batches in ranks for b in batches])
            assert np.array_equal(numbers[numbers >= 0], selection)
            assert np.array_equal(places[numbers >= 0], np.arange(len(selection)))
            assert np.all(places[numbers < 0] == -1)


def test_a_rank_that_evaluates_nothing_is_given_padding_every_time(tone_set):
    shard_set = open_set(tone_set)
    selection = deal(len(shard_set), lambda first, stop: np.arange(first, stop) % 2, [1, 1])[1]
    for _ in range(3):
        (batch,) = evaluation_batches(shard_set, selection, 5, 6, 7, CPU, Reading(resident="auto"))
        assert len(selection) <= 6 * 5 and (batch.numbers == -1).all()


@pytest.mark.parametrize("where", ["memory", "device", "auto", "none"])
def test_what_is_evaluated_again_is_read_twice(tone_set, monkeypatch, where):
    shard_set, read, found = open_set(tone_set), [], []
    selection = deal(len(shard_set), lambda first, stop: np.arange(first, stop) % 2, [1, 1])[1]
    read_rows = Reader.read_rows
    monkeypatch.setattr(
        Reader,
        "read_rows",
        lambda self, rows, *more: (read.append(len(rows)), read_rows(self, rows, *more)),
    )
    for _ in range(4):
        read.append("begins")
        reading = Reading(resident=where)
        batches = evaluation_batches(shard_set, selection, 5, 0, 1, CPU, reading)
        found.append(torch.cat([batch.x.clone() for batch in batches]))
        assert torch.equal(found[-1], found[0])
    begins = [n for n, each in enumerate(read) if each == "begins"]
    counts = [sum(read[a + 1 : b]) for a, b in zip(begins, [*begins[1:], None], strict=True)]
    assert min(counts[:2]) >= len(selection)  # two threads may meet at one
    assert counts[2:] == [0, 0] if where != "none" else min(counts[2:]) >= len(selection)


@pytest.mark.parametrize("starts", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_starts_leave_no_thread_and_no_descriptor(tone_set, starts):
    shard_set = open_set(tone_set)
    order = Order(len(shard_set.index), 6, seed=0)
    loader = Loader(shard_set, np.arange(order.n), order, plan_batch(6, None, 1), 0, CPU)

    def held():
        gc.collect()
        slots = sum(type(x) is Slot for x in gc.get_objects())
        return slots, threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = held()  # slots too: an earlier test's failure keeps what it was at
    for n in range(starts):
        steps = loader.steps(n, 10**6)
        for _, _ in zip(range(n % 3 + 1), steps, strict=False):
            pass
        steps.close()
    assert held() == before


def test_the_bytes_are_those_that_webdataset_reads(tone_set):
    shard_set = open_set(tone_set)
    plainly = [sample["npy"] for sample in read_plainly(tone_set)]
    assert len(plainly) == len(shard_set.index)
    numbers = np.random.default_rng(1).integers(0, len(plainly), 10_000)
    with Reader(shard_set) as reader:
        for some in np.split(numbers, 10):
            got = reader.read(some)
            assert got.tobytes() == b"".join(plainly[n].tobytes() for n in some)


@pytest.mark.parametrize("where", ["memory", "device", "auto"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_resident_set_gives_the_same_and_is_read_once(tone_set, where, threads, monkeypatch):
    monkeypatch.setattr(loader_module, "MOST", 1)  # else whole blocks of steps are read
    shard_set = open_set(tone_set)
    selection = np.flatnonzero(shard_set.index["fold"] != 0)
    order, plan = Order(len(selection), 12, seed=3), plan_batch(12, 4, 1)
    parts = [Reading(threads=n, resident=r) for n, r in ((1, "none"), (threads, where))]
    loaders = [Loader(shard_set, selection, order, plan, 0, CPU, reading) for reading in parts]
    stop = 3 * order.steps_per_epoch
    for one, other in zip(*(loader.steps(1, stop) for loader in loaders), strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
            assert np.array_equal(a.numbers, b.numbers)
    read = [sum(w.reader.bytes for w in loader._feed._workers) for loader in loaders]
    sample = 2 * int(np.prod(shard_set.shape))
    assert read[0] == (stop - 1) * 12 * sample
    assert read[1] <= (len(selection) + 12 * threads) * sample  # two threads may meet at one


def test_auto_keeps_what_takes_a_quarter_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda: 800)
    assert [resident.choose("auto", 100, CPU, n) for n in (1, 2, 3)] == ["memory"] * 2 + ["none"]
    assert resident.choose("auto", 201, CPU, 1) == "none"
    assert resident.choose("device", 400, CPU, 2) == "device"
    with pytest.raises(UserError, match=r"memory: the samples take .* GB are free; use auto"):
        resident.choose("memory", 401, CPU, 2)
    monkeypatch.setattr(loader_module, "free_memory", lambda: 800)
    few = ShardSet(Path("x"), {"shape": [2, 3]})
    large = Loader(few, np.arange(99), Order(99, 64, 0), plan_batch(64, None, 1), 0, CPU)
    with pytest.raises(UserError, match=r"batch_size=64: the samples of a step take .* GB"):
        next(large.steps(0, 1))
    monkeypatch.setattr(resident, "free_memory", lambda: 0)  # a machine that does not say
    assert [resident.choose(where, 9, CPU, 1) for where in ("auto", "memory")] == ["none", "memory"]
    monkeypatch.undo()
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 << 20 < resident.free_memory() < there


def test_figures_say_what_was_waited_for_and_read(tone_set, monkeypatch):
    monkeypatch.setattr(loader_module, "MOST", 1)  # a block is read whole, if half of it is used
    shard_set = open_set(tone_set)
    order, plan = Order(len(shard_set.index), 6, seed=0), plan_batch(6, None, 1)
    loader = Loader(shard_set, np.arange(order.n), order, plan, 0, CPU)
    read_rows = Reader.read_rows
    monkeypatch.setattr(
        Reader, "read_rows", lambda *words: (time.sleep(0.05), read_rows(*words))[1]
    )
    began = time.perf_counter()
    list(loader.steps(0, 8))
    figures = loader.figures()
    slowest = 48 / (time.perf_counter() - began)
    assert 0.5 < figures["loader_wait"] <= 1  # nothing but waiting was done
    assert slowest - 0.1 <= figures["samples_per_s"] <= 48 / (8 * 0.05) + 0.1
    read = figures["bytes_per_s"] / figures["samples_per_s"]
    assert read == pytest.approx(2 * np.prod(shard_set.shape), rel=0.01)


def test_a_shard_cut_under_the_reader_is_named(tone_set, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(tone_set, copy)
    shard_set = open_set(copy)
    last = shard_set.shard_paths[-1]
    with Reader(shard_set) as reader:
        reader.read(np.array([len(shard_set.index) - 1]))
        with open(last, "r+b") as tar:
            tar.truncate(1024)
        with pytest.raises(ShardError, match=last.name):
            reader.read(np.array([len(shard_set.index) - 1]))
    with pytest.raises(UserError, match=f"{last.name}: 1024 bytes"):
        open_set(copy)
    last.unlink()
    with pytest.raises(UserError, match=f"{last.name}: missing"):
        open_set(copy)
