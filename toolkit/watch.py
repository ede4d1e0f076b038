"""Where each rank stands, what is said when none gets on, and how all of them end together.

Every process has a thread that looks at it once a second. Where there are several, another one
tells the ranks' common store what it saw and hears of the others: it may hang, for a store whose
process was stopped never answers.
"""

import json
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import NamedTuple, NoReturn

from shards.errors import ShardError, TrainingError, UserError
from toolkit import lock
from toolkit.world import launched

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds
STALL = 60.0  # seconds without progress before it is said where each rank stands
LISTEN = 10  # looks between those at the other ranks' places
SILENT = 15.0  # seconds without a sign of a rank: it cannot speak for itself


class Place(NamedTuple):
    """A place in the one sequence of places that all ranks go through."""

    passed: int  #: places before this one: whoever has the fewest is who the others wait for
    words: str  #: "train, step"
    number: int | None = None

    def __str__(self) -> str:
        return self.words if self.number is None else f"{self.words} {self.number}"


_here = Place(0, "start")


def at(words: str, number: int | None = None) -> None:
    """Note how far this process has got; every rank calls it in the same places."""
    global _here
    _here = Place(_here.passed + 1, words, number)


@contextmanager
def ending_together(timeout: float) -> Iterator[None]:
    """Around a training: what one rank cannot bear ends all of them, with one rank's words.

    The others would wait for it in a collective: gloo until its socket closes, NCCL for minutes.
    After STALL seconds without progress it is said who waits for whom, after `timeout` all end;
    0: never, since a debugger may hold the process for long.
    """
    watch = Watch(timeout)
    watch.start()
    try:
        yield
    except ShardError as error:
        watch.end(f"{error}; python -m shards verify tells more")
    except MemoryError as error:  # of one rank, where the others wait for its part of the weights
        watch.end(str(error) or "out of memory")
    except (UserError, TrainingError):  # which all ranks meet alike
        raise
    except KeyboardInterrupt:  # of this process alone it ends the others, too
        if watch.size > 1:
            first_to_fail()
        raise
    except Exception:
        if watch.size > 1 and (watch.failed.is_set() or not first_to_fail()):
            leave()  # it is but a collective that another rank has left
        raise
    finally:
        watch.stop()


class Watch:
    """The two threads, and what they know of this rank and of the others."""

    def __init__(self, timeout: float):
        self.rank, self.size = launched()
        self.timeout = timeout or math.inf
        self.stall = min(STALL, timeout / 2) if timeout else math.inf
        self.over, self.failed = Event(), Event()
        self.idle = 0.0  #: seconds in the same place; a suspended process does not count them
        self.heard: dict[int, tuple[float, Place]] = {}  #: of other ranks: when, and their place
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Begin to look, unless there is nothing to watch."""
        several, limited = self.size > 1, self.timeout < math.inf
        for loop in [self._look] * (several or limited) + [self._talk] * several:
            self._threads.append(Thread(target=loop, name="watch", daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Look no longer. A thread that the end of Python meets inside the store's C++ aborts the
        process, so they are waited for; not for long, since a store may never answer."""
        self.over.set()
        for thread in self._threads:
            thread.join(5 * LOOK_EVERY)

    def _look(self) -> None:
        seen, said = _here, False
        while not self.over.wait(LOOK_EVERY):
            if self.failed.is_set():
                leave()
            same, seen = seen is _here, _here
            self.idle = self.idle + LOOK_EVERY if same else 0.0
            if self.idle >= self.timeout:
                rule = f"train.timeout={self.timeout:g}"
                self.end(f"no progress for {self.idle:.0f} s, {rule}: {self._sentence()}")
            if self.idle >= self.stall and not said:
                self._report()
            said = self.idle >= self.stall

    def _talk(self) -> None:
        """Beat; hear of failures, and of the others' places, more often when nothing goes on."""
        from torch.distributed import distributed_c10d as c10d

        store, beats, signs = None, 0, dict[int, bytes]()
        while not self.over.wait(LOOK_EVERY):
            if not c10d.is_initialized():
                continue
            try:
                # A connection of its own: the main thread may wait for an answer on the other.
                store = store or c10d._get_default_store().clone()
                beats += 1
                store.set(f"wavefold/place/{self.rank}", json.dumps([beats, *_here]))
                if store.add("wavefold/failures", 0):
                    self.failed.set()
                    return  # the store may be gone before this process is, and torch complain
                if beats % LISTEN and self.idle < self.stall / 2:
                    continue
                keys = [f"wavefold/place/{rank}" for rank in range(self.size)]
                for rank, text in enumerate(store.multi_get(keys)):
                    if rank != self.rank and signs.get(rank) != text:
                        signs[rank] = text
                        self.heard[rank] = time.monotonic(), Place(*json.loads(text)[1:])
            except RuntimeError:  # whoever held the store has gone
                return

    def _places(self) -> tuple[dict[int, Place], set[int]]:
        """Each rank's last known place, and those that give no sign of themselves."""
        now, heard = time.monotonic(), dict(self.heard)
        limit = min(SILENT, self.stall / 2)
        silent = {r for r in range(self.size) if r not in heard or now - heard[r][0] > limit}
        places = {rank: place for rank, (_, place) in heard.items()}
        return dict(sorted({**places, self.rank: _here}.items())), silent - {self.rank}

    def _sentence(self) -> str:
        places, silent = self._places()
        return sentence(places, silent, self.size)

    def _report(self) -> None:
        """Say who waits for whom, once for all ranks; the stack, if it is this one that hangs."""
        places, silent = self._places()
        speaks = self.rank == min(places.keys() - silent)
        behind = min(place.passed for place in places.values())
        if speaks:
            log.warning("no progress for %.0f s: %s", self.idle, self._sentence())
        alike = all(place.passed == behind for place in places.values())
        if _here.passed == behind and (speaks or not alike):
            log.warning("rank %d stands here:\n%s", self.rank, stack())

    def end(self, line: str) -> NoReturn:
        """Say `line`, unless another rank has said something already, and end the process."""
        self.over.set()
        if self.size == 1 or first_to_fail():
            print(f"error: {line}", file=sys.stderr, flush=True)
        leave()


def sentence(places: Mapping[int, Place], silent: set[int], size: int) -> str:
    """`rank 3: evaluate, batch 12; others: train, step 801`: those that are behind come first."""
    if size == 1:
        return str(places[0])
    names = {rank: str(place) for rank, place in places.items()}
    names |= {r: f"{names.get(r, 'start')} (no sign of it)" for r in silent}
    (most, count), *_ = Counter(names.values()).most_common()
    few = [rank for rank in sorted(names, key=lambda r: places.get(r, Place(0, ""))[0])]
    few = [rank for rank in few if names[rank] != most or count == 1]
    lines = [f"rank {rank}: {names[rank]}" for rank in few]
    lines += [f"{'others' if few else 'all ranks'}: {most}"] if count > 1 else []
    return "; ".join(lines)


def stack() -> str:
    """Where the main thread is."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return "".join(traceback.format_stack(frame)).rstrip()


def first_to_fail() -> bool:
    """Count a failure in the ranks' common store; whether it is the first, as far as can be known.

    Without a store nobody else can tell, and one that does not answer is not waited for.
    """
    from torch.distributed import distributed_c10d as c10d

    def count() -> None:
        try:
            answer.put(c10d._get_default_store().clone().add("wavefold/failures", 1))
        except RuntimeError:  # whoever held it has gone
            answer.put(1)

    if not c10d.is_initialized():
        return True
    answer: SimpleQueue[int] = SimpleQueue()
    Thread(target=count, name="failure", daemon=True).start()
    try:
        return answer.get(timeout=5 * LOOK_EVERY) == 1
    except Empty:
        return True


def leave() -> NoReturn:
    """Exit code 1, whatever other threads wait for; not at once: the store may end with us."""
    Thread(target=lock.release, name="release", daemon=True).start()  # its disk may hang, too
    time.sleep(2 * LOOK_EVERY)
    os._exit(1)
