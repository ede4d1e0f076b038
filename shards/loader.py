"""Batches on the device, the same on any number of ranks: no DataLoader, no workers, no collate."""

import time
from collections.abc import Iterator
from functools import cached_property
from itertools import cycle, islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from shards.errors import UserError
from shards.feed import PART, Feed, Reading
from shards.index import ShardSet
from shards.order import BatchPlan, Order
from shards.resident import Store, choose, free_memory
from shards.selection import Selection

MOST = 16  # steps that are read at once


class Batch(NamedTuple):
    """One microbatch: spectrograms, labels, and where its samples stand.

    It lies in a buffer that is used again: valid until the next step is asked for.
    """

    x: torch.Tensor  #: (B, M, T) float16, dB
    y: torch.Tensor  #: (B,) int64 label numbers
    numbers: np.ndarray  #: (B,) int64 sample numbers: rows of the shard set's index
    places: np.ndarray  #: (B,) int64 places in the global batch


class Loader:
    """The training batches of one rank; state is the step alone.

    `selection` holds the numbers of the samples to train on; `order` permutes its places.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        selection: np.ndarray | Selection,
        order: Order,
        plan: BatchPlan,
        rank: int,
        device: torch.device,
        reading: Reading = Reading(),  # noqa: B008, frozen
    ):
        self.shard_set, self.selection, self.order, self.plan = shard_set, selection, order, plan
        self.rank, self.device, self.reading = rank, device, reading
        self._feed: Feed | None = None
        self._last = (0.0, 0.0, 0, 0)
        self._samples = 0  # handed out

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The microbatches of this rank for each of the global batches start .. stop-1.

        Raises:
            ShardError: a shard is missing, too short or changed.
            UserError: a step's samples do not fit into the memory.
        """
        size, together = self.plan.microbatch, self._together
        step_bytes = 2 * int(np.prod(self.shard_set.shape)) * self.plan.per_rank
        if 0 < free_memory() < 2 * step_bytes:
            raise UserError(
                f"train.batch_size={self.plan.batch_size}: the samples of a step take up "
                f"{step_bytes / 1e9:,.3g} GB on each process; use smaller batches"
            )
        places = np.array(self.plan.places(self.rank)).reshape(-1, size)
        asked = min(len(self.selection), (stop - start) * self.plan.batch_size)
        self._feed = Feed(
            self.shard_set, self._numbers, self.plan.per_rank * together, self._store(),
            self.reading, self.device, 2 * asked > len(self.shard_set),
        )  # fmt: skip
        self._last, self._samples = (time.perf_counter(), 0.0, 0, 0), 0
        first, blocks = start // together * together, range(start // together, -(-stop // together))
        found = self._feed.steps(blocks.start, blocks.stop)
        for step, (x, y, numbers) in zip(range(first, stop, together), found, strict=True):
            columns = x.split(size), y.split(size), numbers.reshape(-1, size), cycle(places)
            parts = map(Batch, *columns)
            steps = [list(islice(parts, len(places))) for _ in range(together)]
            for batches in steps[max(0, start - step) : stop - step]:
                self._samples += self.plan.per_rank
                yield batches

    def figures(self) -> dict[str, float]:
        """Since it was last asked: the share of time spent waiting for data, samples a second on
        this rank, bytes a second that came out of the shards; of a cache, all hits and misses."""
        feed = self._feed
        if feed is None:
            return {}
        now = (time.perf_counter(), feed.waited, self._samples, feed.bytes)
        seconds, waited, samples, read = (b - a for a, b in zip(self._last, now, strict=True))
        self._last, seconds = now, max(seconds, 1e-9)
        return {
            "loader_wait": round(waited / seconds, 4),
            "samples_per_s": round(samples / seconds, 1),
            "bytes_per_s": round(read / seconds),
            **self.shard_set.cache_figures(),
        }

    @cached_property
    def _together(self) -> int:
        """Steps that are read at once: where samples are few and small, calls take the time."""
        rows, columns = self.shard_set.shape
        return max(1, min(MOST, PART // (2 * rows * columns * self.plan.per_rank)))

    def _numbers(self, block: int, part: range) -> np.ndarray:
        mine, steps = self.plan.places(self.rank), self._together
        if steps == 1:
            return self.selection[self.order.batch(block, mine[part.start : part.stop])]
        found = [self.order.batch(block * steps + k, mine) for k in range(steps)]
        return self.selection[np.concatenate(found)[part.start : part.stop]]

    def _store(self) -> Store:
        shape, n = self.shard_set.shape, len(self.selection)
        reading = self.reading
        where = choose(
            reading.resident, 2 * n * shape[0] * shape[1], self.device, reading.processes
        )
        numbers = self.selection[np.arange(n if where != "none" else 0)]
        return Store(where, numbers, shape, self.device)


#: What stays of a part that was evaluated; None where that was once. It goes with its selection.
_kept: WeakKeyDictionary[Selection, Store | None] = WeakKeyDictionary()


def evaluation_batches(
    shard_set: ShardSet,
    selection: np.ndarray | Selection,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    reading: Reading = Reading(),  # noqa: B008
) -> Iterator[Batch]:
    """This rank's share of `selection`, in order, each sample once over all ranks.

    `places` are places in `selection`. Which samples share a batch is the same on any number of
    ranks, so that no model can tell them apart; each takes as many of the batches, all of one size:
    where `selection` has ended they are padded, by samples whose number and place are -1. What is
    evaluated again and again stays in memory from the second time on, if `reading` lets it.
    """
    n = len(selection)
    if n == 0:
        return
    batch_size = min(batch_size, n)
    batches = -(-n // (batch_size * world_size))
    first = rank * batches * batch_size

    def numbers(step: int, part: range) -> np.ndarray:
        places = first + step * batch_size + np.arange(part.start, part.stop)
        return selection[np.minimum(places, n - 1)]

    mine = range(min(first, n - 1), min(first + batches * batch_size, n))  # or the last, as padding
    store = _store_of(shard_set, selection, mine, device, reading)
    feed = Feed(shard_set, numbers, batch_size, store, reading, device)
    for step, (x, y, found) in enumerate(feed.steps(0, batches)):
        places = first + step * batch_size + np.arange(batch_size)
        inside = places < n
        yield Batch(x, y, np.where(inside, found, -1), np.where(inside, places, -1))


def _store_of(
    shard_set: ShardSet,
    selection: np.ndarray | Selection,
    places: range,
    device: torch.device,
    reading: Reading,
) -> Store:
    nothing = Store("none", np.zeros(0, np.int64), shard_set.shape, device)
    if not isinstance(selection, Selection) or reading.resident == "none":
        return nothing
    if selection not in _kept:
        _kept[selection] = None
        return nothing
    kept, size = _kept[selection], 2 * len(places) * int(np.prod(shard_set.shape))
    # The device is the training's, and so is what was asked for.
    cpu = torch.device("cpu")
    where = kept.where if kept else choose("auto", size, cpu, reading.processes)
    if where == "none":
        return nothing
    numbers = np.unique(selection[places.start : places.stop])
    if kept is None or kept.device != device or not np.array_equal(kept.numbers, numbers):
        _kept[selection] = kept = Store(where, numbers, shard_set.shape, device)
    return kept
