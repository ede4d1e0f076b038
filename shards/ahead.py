"""Shards brought near before their samples are asked for, by threads of their own.

`P` samples of a step.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Condition, Thread
from typing import TYPE_CHECKING

import numpy as np

from shards.errors import ShardError

if TYPE_CHECKING:
    from shards.read import Reader

CHUNK = 1 << 26  # bytes: between shorter pieces, threads would wait for each other
STREAMS = 4  # shards on their way at once: a disk answers some sooner than one after the other
FEW = 16  # a step that takes its samples from more shards jumps about: none is read to its end
JUMPS = 8  # so many such steps one after the other are an order that jumps about
GRACE = 2.0  # seconds from the start in which steps of such an order wait for what is on its way


class Ahead:
    """Brings the shards of some steps in their turn, at most `span` steps before they are read.

    `shards_of` says which shards a step takes its samples from, (P,) numbers; each of `readers`
    brings one at a time, in a thread. What has come stays if there is room to `keep` the whole set,
    else it may be gone again `span` steps after it was read. Of an order that jumps about no shard
    is brought, or `all_of_them`: then steps can wait, and what comes meanwhile is checked.
    """

    def __init__(
        self,
        readers: "Sequence[Reader]",
        shards_of: Callable[[int], np.ndarray],
        steps: range,
        span: int,
        *,
        keep: bool,
        all_of_them: bool,
    ):
        self.shard_set = readers[0].shard_set
        self.shards_of, self.span, self.keep, self.all_of_them = shards_of, span, keep, all_of_them
        self.over = False  #: nothing more will come
        self._closed = False
        self._next, self._stop = steps.start, steps.stop  # steps whose shards were not noted yet
        self._read = steps.start  # the step that is being read
        self._jumps = 0  # steps that jump about, up to the next one
        self._seen: dict[int, int] = {}  # the last step that takes from a shard
        self._wanted: deque[int] = deque()
        self._waits_until = 0.0  # by time.monotonic
        self._waited = False
        self._busy = len(readers)
        self._change = Condition()
        self._look(min(span, JUMPS))
        self._threads = [
            Thread(target=self._run, args=[reader], name="ahead", daemon=True) for reader in readers
        ]
        for thread in self._threads:
            thread.start()

    def read(self, step: int) -> None:
        """Step `step` was read."""
        with self._change:
            self._read = step + 1
            self._change.notify_all()

    def wait(self, is_here: Callable[[], bool]) -> None:
        """Until all has come, for a step that takes from everywhere, unless it `is_here` already.

        Read meanwhile, its samples would send the disk to and fro, and take longer in the end; but
        GRACE seconds after the start a training goes on.
        """
        left = self._waits_until - time.monotonic()
        if not self.over and left > 0 and not is_here():
            self._waited = True
            with self._change:
                self._change.wait_for(lambda: self.over, left)

    def close(self) -> None:
        """Bring nothing more."""
        self._closed = self.over = True
        self.read(self._read)
        for thread in self._threads:
            thread.join(1)  # one that hangs in a read is left behind: it ends with that

    def _run(self, reader: "Reader") -> None:
        with suppress(Exception), reader:  # who reads will say
            while (shard := self._next_shard()) is not None:
                for _ in self.shard_set.bring(shard):
                    if self._closed:
                        return
                if self._waited:
                    with suppress(ShardError):
                        reader.check_shard(shard)
        with self._change:
            self._busy -= 1
            self.over = self.over or not self._busy
            self._change.notify_all()

    def _next_shard(self) -> int | None:
        with self._change:
            while not self._closed:
                self._look(self.span)
                if self._wanted:
                    return self._wanted.popleft()
                if self._next >= self._stop:
                    break
                self._change.wait()
            return None

    def _look(self, span: int) -> None:
        """Note the shards of all steps that are no more than `span` away."""
        every = range(len(self.shard_set.info["shards"]))
        while self._next < min(self._stop, self._read + span):
            step, shards = self._next, np.unique(self.shards_of(self._next)).tolist()
            self._jumps = self._jumps + 1 if len(shards) > FEW else 0
            if self._jumps:
                shards = every if self._jumps == JUMPS and self.all_of_them else []
            for shard in shards:
                gone = not self.keep and step - self._seen.get(shard, step) > self.span
                if gone or shard not in self._seen:
                    self._wanted.append(shard)
                self._seen[shard] = step
            self._next += 1
            if self._jumps == JUMPS or (self.keep and len(self._seen) == len(every)):
                self._stop = self._next
            if self._jumps == JUMPS and self.all_of_them:
                self._waits_until = time.monotonic() + GRACE


def into_memory(descriptor: int) -> Iterator[None]:
    """Have the kernel read a file into its cache, some of it each time.

    It goes to where all is taken and nothing kept: so the kernel reads ahead in large pages, as for
    whoever reads a whole file, and copies none. (POSIX_FADV_WILLNEED takes small pages, which cost
    more of the processor's time, and on many disks 128 KB at most.)
    """
    with open(os.devnull, "wb") as sink:
        done = 0
        while count := os.sendfile(sink.fileno(), descriptor, done, CHUNK):
            done += count
            yield
