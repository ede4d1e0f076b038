"""Samples read ahead by background threads, into buffers that are used again and again.

`P` samples a step on this process, `M` mel bands, `T` frames.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import torch

from shards.ahead import STREAMS, Ahead
from shards.index import ShardSet
from shards.maps import Maps
from shards.order import share
from shards.read import Reader
from shards.resident import Store, free_memory

log = logging.getLogger(__name__)

BUFFERS = 4  # at most: one in use, the others ahead
RING = 1 << 24  # bytes of buffers, beyond two: what stays in a processor's cache is filled faster
PATIENCE = 60.0  # seconds to wait for data before saying so
LOOK_EVERY = 1.0  # seconds between looks at the shards while there is nothing to read
READAHEAD = 1 << 29  # bytes of samples: how far ahead of them their shards are brought
PART = 1 << 20  # bytes of a step: for less another thread costs more than it reads

#: (step, places of this process' share) -> sample numbers; a pure function, called by all threads.
Numbers = Callable[[int, range], np.ndarray]


@dataclass(frozen=True)
class Reading:
    """How samples are read; none of it changes a value."""

    threads: int = 2  #: that read
    check: bool = True  #: hold each payload against its checksum when it is first read
    resident: str = "none"  #: auto | device | memory | none: where samples stay once they were read
    processes: int = 1  #: that share this machine's memory


def buffers(size: int, pinned: bool = False) -> int:
    """How many buffers of `size` bytes a feed fills in turn."""
    return BUFFERS if pinned else max(2, min(BUFFERS, RING // max(1, size)))


class Slot:
    """One step's samples on the host, and which threads may fill it again."""

    def __init__(self, size: int, shape: tuple[int, int], pin: bool):
        self.x = torch.empty((size, *shape), dtype=torch.float16, pin_memory=pin)
        self.y = torch.empty(size, dtype=torch.int64, pin_memory=pin)
        self.numbers = np.empty(size, np.int64)
        self.places = torch.empty(size, dtype=torch.int64, pin_memory=pin).numpy()  #: if resident
        self.fresh = np.empty(size, bool)  #: not yet on the device


class Worker(NamedTuple):
    """A reading thread's share of every step, and its two queues, a token for each slot."""

    reader: Reader
    part: range
    free: "SimpleQueue[Any]"  #: None, or the CUDA event after which a slot may be written to
    done: "SimpleQueue[None]"


class Feed:
    """The samples of one step after the other, on the device.

    Each thread computes and reads its own part of each step; they share nothing but the buffers.
    `whole`: most samples of the set will be asked for.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        numbers: Numbers,
        size: int,
        store: Store,
        reading: Reading,
        device: torch.device,
        whole: bool = False,
    ):
        self.shard_set, self.numbers, self.size = shard_set, numbers, size
        self.store, self.reading, self.device, self.whole = store, reading, device, whole
        self._bytes_a_step = 2 * size * int(np.prod(shard_set.shape))
        self.waited = 0.0  #: seconds spent waiting for data
        self._fits = 2 * int(np.prod(shard_set.shape)) * len(shard_set) <= free_memory()
        self._failure: BaseException | None = None
        self._closed = Event()
        self._workers: list[Worker] = []

    @property
    def bytes(self) -> int:
        """Bytes read from the shards."""
        return sum(worker.reader.bytes for worker in self._workers)

    def steps(
        self, start: int, stop: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        """(P, M, T) float16 dB, (P,) labels and (P,) sample numbers of each step, start .. stop-1.

        What was handed out is overwritten once the next is asked for (on CUDA: the numbers).

        Raises:
            ShardError: a shard is missing, too short or changed; as soon as that is noticed.
        """
        pin = self.device.type == "cuda"
        count = buffers(self._bytes_a_step, pin)
        slots = [Slot(self.size, self.shard_set.shape, pin) for _ in range(count)]
        threads = self._start(slots, start, stop)
        try:
            for step in range(start, stop):
                began = time.perf_counter()
                for worker in self._workers:
                    self._await(worker, step)
                self.waited += time.perf_counter() - began
                slot = slots[step % len(slots)]
                x, y, copied = self.store.take(slot.x, slot.y, slot.places, slot.fresh)
                yield x, y, slot.numbers
                for worker in self._workers:
                    worker.free.put(copied)
        finally:
            self._closed.set()
            self._ahead.close()
            for worker, thread in zip(self._workers, threads, strict=True):
                worker.free.put(None)
                thread.join(5)  # one that hangs in a read is left behind: it ends with the process

    def _start(self, slots: list[Slot], start: int, stop: int) -> list[Thread]:
        count = max(1, min(self.reading.threads, self.size, -(-self._bytes_a_step // PART)))
        maps = Maps(self.shard_set, self._fits)
        steps, span = range(start, stop), max(1, READAHEAD // self._bytes_a_step)
        readers = [Reader(self.shard_set, self.reading.check, maps) for _ in range(STREAMS)]
        self._ahead = Ahead(
            readers,
            self._shards,
            steps[:0] if self.store.is_full else steps,
            span,
            keep=self._fits,
            all_of_them=self.whole and self._fits and not self.shard_set.is_remote,
        )
        for n in range(count):
            reader = Reader(self.shard_set, self.reading.check, maps)
            worker = Worker(reader, share(self.size, n, count), SimpleQueue(), SimpleQueue())
            self._workers.append(worker)
            for _ in slots:
                worker.free.put(None)
        threads = [
            Thread(target=self._work, args=(worker, slots, start, stop), name="shards", daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, worker: Worker, slots: list[Slot], start: int, stop: int) -> None:
        try:
            with worker.reader:
                for step in range(start, stop):
                    self._wait_for_room(worker)
                    if self._closed.is_set():
                        return
                    self._fill(worker, slots[step % len(slots)], step)
                    worker.done.put(None)
                    if not self._ahead.over and worker is self._workers[0]:
                        self._ahead.read(step)
                while not self._closed.is_set():  # the last steps are still in use
                    self._wait_for_room(worker)
        except BaseException as error:
            self._failure = error
            for other in self._workers:  # whoever is waited for: this comes first
                other.done.put(None)

    def _wait_for_room(self, worker: Worker) -> None:
        worker.reader.look()
        while True:
            try:
                copied = worker.free.get(timeout=LOOK_EVERY)
            except Empty:
                worker.reader.look()
                continue
            if copied is not None:
                copied.synchronize()
            return

    def _fill(self, worker: Worker, slot: Slot, step: int) -> None:
        numbers = self.numbers(step, worker.part)
        part = slice(worker.part.start, worker.part.stop)
        rows = self.shard_set.rows(numbers)
        self._ahead.wait(partial(worker.reader.has, rows))
        slot.numbers[part] = numbers
        slot.y.numpy()[part] = rows["label"]
        mine = slot.x.numpy()[part], slot.places[part], slot.fresh[part]
        self.store.fill(step, worker.reader, rows, numbers, *mine)

    def _shards(self, step: int) -> np.ndarray:
        return self.shard_set.rows(self.numbers(step, range(self.size)))["shard"]

    def _await(self, worker: Worker, step: int) -> None:
        """Wait until a thread has read its part of the step, and say so where that takes long."""
        waited = 0.0
        while self._failure is None:
            try:
                worker.done.get(timeout=PATIENCE)
                break
            except Empty:
                waited += PATIENCE
                log.warning(
                    "step %d has waited %.0f s for data: %s", step, waited, worker.reader.doing
                )
        if self._failure is not None:
            raise self._failure
