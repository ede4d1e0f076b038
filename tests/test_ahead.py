"""Which shards are brought before their samples are asked for, and how much of them."""

import ctypes
import mmap

import numpy as np
import pytest
import torch

from shards import feed
from shards.ahead import FEW, Ahead
from shards.feed import Reading
from shards.index import ShardSet, open_set
from shards.loader import Loader
from shards.order import Order, plan_batch

CPU = torch.device("cpu")
MANY = FEW + 4


class Sets:
    """As much of a shard set as Ahead looks at."""

    def __init__(self):
        self.info, self.brought = {"shards": [{}] * MANY}, []

    def bring(self, shard):
        self.brought.append(shard)
        yield


def walk(shards_of, steps, span, **words):
    """The shards that are brought, and how many of them had been asked for when each step began."""
    sets, before = Sets(), []
    ahead = Ahead(sets, shards_of, range(steps), span, **words)
    for step in range(steps):
        before.append(len(sets.brought) + len(ahead._wanted))
        ahead.read(step)
    for thread in ahead._threads:
        thread.join(60)
    assert ahead.over
    ahead.close()
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
