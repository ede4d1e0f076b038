"""Batches on the device, the same on any number of ranks: no DataLoader, no workers, no collate."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from shards.index import ShardSet
from shards.order import BatchPlan, Order, share
from shards.read import Reader
from shards.selection import Selection


class Batch(NamedTuple):
    """One microbatch: spectrograms, labels, and where its samples stand."""

    x: torch.Tensor  #: (B, M, T) float16, dB
    y: torch.Tensor  #: (B,) int64 label numbers
    numbers: np.ndarray  #: (B,) int64 sample numbers: rows of the shard set's index
    places: np.ndarray  #: (B,) int64 places in the global batch


class Loader:
    """The training batches of one rank; state is the step alone.

    `selection` holds the numbers of the samples to train on; `order` permutes its places.
    One background thread reads the next step while this one trains.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        selection: np.ndarray | Selection,
        order: Order,
        plan: BatchPlan,
        rank: int,
        device: torch.device,
    ):
        self.shard_set, self.selection, self.order, self.plan = shard_set, selection, order, plan
        self.rank, self.device = rank, device
        self._begun = self._waited = 0.0

    @property
    def wait_share(self) -> float:
        """The share of the time since the first step that was spent waiting for data."""
        return self._waited / max(1e-9, time.perf_counter() - self._begun)

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The microbatches of this rank for each of the global batches start .. stop-1."""
        self._begun, self._waited = time.perf_counter(), 0.0
        with Reader(self.shard_set) as reader, ThreadPoolExecutor(1, "loader") as thread:
            coming = thread.submit(self._fetch, reader, start) if start < stop else None
            for step in range(start, stop):
                assert coming is not None
                began = time.perf_counter()
                batches = coming.result()
                self._waited += time.perf_counter() - began
                coming = thread.submit(self._fetch, reader, step + 1) if step + 1 < stop else None
                yield [self._to_device(batch) for batch in batches]

    def _fetch(self, reader: Reader, step: int) -> list[Batch]:
        places = self.plan.places(self.rank)
        numbers = self.selection[self.order.batch(step, places)]
        if self.shard_set.is_remote:
            ahead = self.selection[self.order.batch(step + 1, places)]
            self.shard_set.prefetch(np.unique(self.shard_set.rows(ahead)["shard"]).tolist())
        size = self.plan.microbatch
        return [
            read_batch(
                reader, numbers[i : i + size], np.arange(places.start, places.stop)[i : i + size]
            )
            for i in range(0, len(numbers), size)
        ]

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        x, y = (t.pin_memory().to(self.device, non_blocking=True) for t in batch[:2])
        return batch._replace(x=x, y=y)


def read_batch(reader: Reader, numbers: np.ndarray, places: np.ndarray) -> Batch:
    """Read samples into a batch on the host."""
    x = torch.from_numpy(reader.read(numbers))
    labels = reader.shard_set.rows(numbers)["label"].astype(np.int64)
    return Batch(x, torch.from_numpy(labels), numbers, places)


def evaluation_batches(
    shard_set: ShardSet,
    selection: np.ndarray | Selection,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """This rank's share of `selection`, in order, each sample once over all ranks.

    `places` are places in `selection`. The last batch may be short; shares differ by one sample.
    """
    mine = share(len(selection), rank, world_size)
    with Reader(shard_set) as reader:
        for first in range(mine.start, mine.stop, batch_size):
            places = np.arange(first, min(first + batch_size, mine.stop))
            batch = read_batch(reader, selection[places], places)
            yield batch._replace(x=batch.x.to(device), y=batch.y.to(device))
