"""Batches against the tars read by tarfile, and against the same batches on other ranks."""

import io
import json
import shutil
import tarfile
import threading

import numpy as np
import pytest
import torch

from shards.errors import ShardError, UserError
from shards.index import open_set
from shards.loader import Batch, Loader, evaluation_batches
from shards.order import Order, plan_batch
from shards.read import Reader

CPU = torch.device("cpu")


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
    selection = np.arange(1, len(shard_set.index), 2)
    for world_size in (1, 2, 3, 5):
        for size in (1, 4, 100):
            ranks = [
                list(evaluation_batches(shard_set, selection, size, rank, world_size, CPU))
                for rank in range(world_size)
            ]
            assert len({len(batches) for batches in ranks}) == 1, "a rank that waits for another"
            assert len({batch.x.shape for batches in ranks for batch in batches}) == 1
            numbers = np.concatenate([b.numbers for batches in ranks for b in batches])
            places = np.concatenate([b.places for batches in ranks for b in batches])
            assert np.array_equal(numbers[numbers >= 0], selection)
            assert np.array_equal(places[numbers >= 0], np.arange(len(selection)))
            assert np.all(places[numbers < 0] == -1)


def test_leaving_in_the_middle_leaves_no_thread(tone_set):
    shard_set = open_set(tone_set)
    order = Order(len(shard_set.index), 6, seed=0)
    loader = Loader(shard_set, np.arange(order.n), order, plan_batch(6, None, 1), 0, CPU)
    before = threading.active_count()
    for _ in range(20):
        steps = loader.steps(0, 100)
        next(steps)
        steps.close()
    assert threading.active_count() == before


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
