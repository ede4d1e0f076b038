"""Which shards are brought before their samples are asked for, and how much of them."""

import ctypes
import mmap
import os
import shutil
import time
from contextlib import nullcontext
from threading import Event, Timer

import numpy as np
import pytest
import torch

from shards import ahead, feed, read
from shards.ahead import FEW, Ahead
from shards.errors import ShardError
from shards.feed import Reading
from shards.index import ShardSet, open_set
from shards.loader import Loader
from shards.maps import Maps
from shards.order import Order, plan_batch
from shards.read import Reader

CPU = torch.device("cpu")
MANY = FEW + 4


class Sets:
    """As much of a shard set as Ahead looks at; `go`: shards may come."""

    def __init__(self):
        self.info, self.brought, self.go = {"shards": [{}] * MANY}, [], Event()
        self.go.set()

    def bring(self, shard):
        self.go.wait(60)
        self.brought.append(shard)
        yield


class Readers(nullcontext):
    """As much of a reader as Ahead looks at."""

    def __init__(self, sets):
        super().__init__()
        self.shard_set, self.checked = sets, []

    def check_shard(self, shard):
        self.checked.append(shard)
        if shard == 3:
            raise ShardError("other bytes")


def walk(shards_of, steps, span, **words):
    """The shards that are brought, and how many of them had been asked for when each step began."""
    sets, before = Sets(), []
    readers = [Readers(sets), Readers(sets)]
    bringing = Ahead(readers, shards_of, range(steps), span, **words)
    for step in range(steps):
        before.append(len(sets.brought) + len(bringing._wanted))
        bringing.read(step)
    for thread in bringing._threads:
        thread.join(60)
    assert bringing.over and not readers[0].checked, "nobody has waited"
    bringing.close()
    return sets.brought, before


@pytest.mark.parametrize("keep, times", [(True, 1), (False, 3)])
@pytest.mark.parametrize("span", [1, 5, 25])
def test_shards_come_in_their_turn_and_again_only_if_they_may_be_gone(keep, times, span):
    """Ten steps a shard, three epochs."""
    brought, before = walk(
        lambda step: np.array([step // 10 % MANY]), 30 * MANY, span, keep=keep, all_of_them=True
    )
    assert sorted(brought) == sorted(list(range(MANY)) * times)
    most = np.minimum((np.arange(30 * MANY) + span - 1) // 10 + 1, MANY * times)
    assert (before <= most).all(), "further ahead than it may be"


@pytest.mark.parametrize("all_of_them", [True, False])
def test_an_order_that_jumps_about_brings_all_or_nothing(all_of_them):
    def brought(shards_of):
        return sorted(walk(shards_of, 40, 2, keep=True, all_of_them=all_of_them)[0])

    assert brought(lambda step: np.arange(MANY)) == list(range(MANY)) * all_of_them
    # Between two windows of an order a step takes from the shards of both.
    windows = brought(lambda step: np.arange(MANY) if step % 9 == 8 else np.array([step // 9]))
    assert windows == [0, 1, 2, 3, 4]


def test_steps_that_jump_about_wait_for_what_comes_and_have_it_checked(monkeypatch):
    monkeypatch.setattr(ahead, "GRACE", 60.0)
    sets, words = Sets(), {"keep": True, "all_of_them": True}
    readers = [Readers(sets), Readers(sets)]
    sets.go.clear()
    bringing = Ahead(readers, lambda step: np.arange(MANY), range(40), 9, **words)
    bringing.wait(lambda: True)
    assert not sets.brought, "what is here waits for nothing"
    Timer(0.2, sets.go.set).start()
    bringing.wait(lambda: False)
    assert bringing.over and sorted(sets.brought) == list(range(MANY))
    checked = readers[0].checked + readers[1].checked
    assert sorted(checked) == list(range(MANY)), "one that is damaged stops no other"
    bringing.close()


@pytest.mark.parametrize(
    "all_of_them, shards, looked",
    [
        pytest.param(True, range(MANY), 1, id="not for ever"),
        pytest.param(False, range(MANY), 0, id="not where nothing comes"),
        pytest.param(True, [0], 0, id="not in turn"),
    ],
)
def test_a_wait_has_an_end(monkeypatch, all_of_them, shards, looked):
    """Where there is nothing to wait for, it is not even looked whether a sample is there."""
    monkeypatch.setattr(ahead, "GRACE", 0.2)
    sets, asked = Sets(), []
    sets.go.clear()
    words = {"keep": True, "all_of_them": all_of_them}
    bringing = Ahead([Readers(sets)], lambda step: np.array(shards), range(40), 9, **words)
    bringing.wait(lambda: bool(asked.append(1)))
    time.sleep(0.2)
    bringing.wait(lambda: bool(asked.append(2)))
    assert asked == [1] * looked, "the first step waits, and the next one no more"
    assert not sets.go.is_set() and not sets.brought, "it went on before anything had come"
    sets.go.set()
    bringing.close()


@pytest.mark.parametrize("selected", [54, 20])
def test_all_is_brought_if_most_samples_take_part_and_nothing_that_is_in_memory(
    tone_set, monkeypatch, selected
):
    asked = []
    monkeypatch.setattr(
        feed, "Ahead", lambda *words, **more: asked.append((words, more)) or Ahead(*words, **more)
    )
    order, plan = Order(selected, 6, seed=0), plan_batch(6, None, 1)
    reading = Reading(resident="memory")
    loader = Loader(open_set(tone_set), np.arange(selected), order, plan, 0, CPU, reading)
    list(loader.steps(0, order.steps_per_epoch))
    done = loader._feed
    list(feed.Feed(done.shard_set, done.numbers, 6, done.store, reading, CPU).steps(0, 1))
    (words, more), (then, _) = asked
    assert more == {"keep": True, "all_of_them": selected == 54}
    shards = open_set(tone_set).index["shard"][:selected]
    steps, shards_of = words[2], words[1]
    assert set(np.concatenate([shards_of(step) for step in steps])) == set(shards.tolist())
    assert list(then[2]) == []


@pytest.mark.parametrize("steps, most", [(4, False), (5, True)])
def test_a_few_steps_do_not_bring_the_whole_set(tone_set, monkeypatch, steps, most):
    asked = []
    monkeypatch.setattr(
        feed, "Ahead", lambda *words, **more: asked.append(more) or Ahead(*words, **more)
    )
    order, plan = Order(54, 6, seed=0), plan_batch(6, None, 1)
    list(Loader(open_set(tone_set), np.arange(54), order, plan, 0, CPU).steps(0, steps))
    assert asked == [{"keep": True, "all_of_them": most}]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux says so")
def test_a_reader_knows_what_it_need_not_wait_for(tone_set, tmp_path):
    copy = shutil.copytree(tone_set, tmp_path / "copy")
    shard_set = open_set(copy)
    rows = shard_set.rows(np.arange(len(shard_set)))
    first = np.flatnonzero(rows["shard"] == 0)
    for tar in shard_set.shard_paths[1:]:
        with open(tar, "rb") as content:
            os.fdatasync(content.fileno())  # tests have no fsync
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Reader(shard_set) as reader:
        assert reader.has(rows[first])
        if reader.has(rows):
            pytest.skip("this file system keeps all in memory")
        reader.read(np.arange(len(rows)))
        assert reader.has(rows)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_shard_that_was_checked_is_not_checked_again(tone_set, tmp_path, monkeypatch, mapped):
    copy, digests = shutil.copytree(tone_set, tmp_path / "copy"), []
    shard_set = open_set(copy)
    expected = Reader(shard_set).read(np.arange(len(shard_set)))
    bad = int(shard_set.shard_ends[1])  # the second shard's first sample
    with open(shard_set.shard_paths[1], "r+b") as tar:
        tar.seek(int(shard_set.rows(np.array([bad]))["offset"][0]))
        tar.write(b"\xff" * 8)
    digest = read.xxhash.xxh3_64_intdigest
    with Reader(shard_set, maps=Maps(shard_set, mapped)) as reader:
        reader.check_shard(0)
        with pytest.raises(ShardError, match="other bytes"):
            reader.check_shard(1)
        monkeypatch.setattr(
            read.xxhash, "xxh3_64_intdigest", lambda data: digests.append(0) or digest(data)
        )
        assert np.array_equal(reader.read(np.arange(bad)), expected[:bad]) and not digests
        with pytest.raises(ShardError, match="other bytes"):
            reader.read(np.array([0, bad]))


def test_a_shard_that_is_brought_comes_whole(tmp_path):
    size, name = 20 << 20, "samples-000000.tar"
    with open(tmp_path / name, "wb") as tar:
        tar.truncate(size)
    with open(tmp_path / name, "r+b") as tar, mmap.mmap(tar.fileno(), size) as content:
        address = ctypes.addressof(ctypes.c_char.from_buffer(content))
        pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()

        def there():
            assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(address), size, pages)
            return sum(page & 1 for page in pages) / len(pages)

        if there() > 0:
            pytest.skip("this file system keeps all in memory")
        shard_set = ShardSet(tmp_path, {"shards": [{"name": name}, {"name": "not there"}]})
        assert list(shard_set.bring(1)) == []  # who reads it will say so
        assert len(list(shard_set.bring(0))) == 1 and there() == 1
