"""Processes that are given runs of items, and what becomes of an item that its process does not
survive."""

import contextlib
import itertools
import math
import multiprocessing
import signal
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from multiprocessing.connection import wait
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from shards.errors import UserError
from shards.process import receive, serve
from shards.slots import Slots, make_slots

GIVEN = 3  # runs a worker has at once, so that it need not wait for this process
TRIES = 2  # a process that dies may have been the victim of another one's memory
PRELOAD = ["shards.recipe", "shards.folder", "shards.frames", "shards.loops", "shards.write"]
PRELOAD += ["shards.process", "soundfile", "soxr", "xxhash"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Task(NamedTuple):
    """Items of a run, from which place in it on, and which try this is of the first of them; and
    where a worker puts what it makes of them."""

    run: int
    first: int
    items: Sequence[Any]
    tried: int = 0
    slot: int | None = None

    def alone(self, place: int, tried: int = 0) -> "Task":
        """One of the items."""
        return Task(self.run, self.first + place, self.items[place : place + 1], tried)


class Worker:
    """A process and the tasks it was given; the first of them is being worked on."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = fresh_context()
        self.connection, theirs = context.Pipe()
        self.clock = context.RawArray("d", 2)  # the item it is at, and since when
        self.slots = make_slots()
        words = theirs, function, self.clock, self.slots
        self.process = context.Process(target=serve, args=words, daemon=True)
        with unbroken():
            self.process.start()
        theirs.close()  # or its end would not be noticed
        if self.slots:
            self.slots.settle()
        self.tasks: deque[Task] = deque()
        self.is_ready = False
        self.heard = monotonic()

    @property
    def since(self) -> float:
        """When it began what it is at; what it waited for this process is not counted."""
        return max(self.heard, self.clock[1])

    def give(self, task: Task, lends: bool = False) -> None:
        """Hand a task over, with a slot if it `lends` its results; a process that has died is
        noticed when it is listened to."""
        if not self.tasks:
            self.heard = monotonic()
        slot = self.slots.take() if lends and self.slots else None
        self.tasks.append(task._replace(slot=slot))
        with contextlib.suppress(OSError):
            self.connection.send((task.items, slot))

    def receive(self) -> Any:
        """Its next message, as `shards.process.receive` has it."""
        slot = self.tasks[0].slot if self.tasks else None
        room = self.slots[slot] if self.slots and slot is not None else None
        return receive(self.connection, room)

    def turn_to(self, function: Callable[[Any], Any]) -> "Worker":
        """Have it do something else from now on."""
        self.is_ready = False
        with contextlib.suppress(OSError):
            self.connection.send(function)
        return self

    def dismiss(self) -> None:
        """Have the process end; it writes nothing, so it may be at anything."""
        self.is_ready = False
        self.process.kill()

    def stop(self) -> None:
        """End the process, and wait until it is gone."""
        self.dismiss()
        self.process.join()
        self.connection.close()


_spare: ContextVar[list[Worker] | None] = ContextVar("spare", default=None)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Have the workers of one crew serve in the next, as long as this lasts."""
    spare: list[Worker] = []
    token = _spare.set(spare)
    try:
        yield
    finally:
        dismiss()
        _spare.reset(token)
        for worker in spare:
            worker.stop()


def dismiss() -> None:
    """Have the workers that are kept end, all at once and beside what this process goes on to do:
    the kernel takes some milliseconds for each."""
    for worker in _spare.get() or []:
        worker.dismiss()


class Crew(Generic[Item, Result]):
    """The workers, the tasks that wait for one, and the results that wait for their turn."""

    def __init__(
        self,
        function: Callable[[Item], Result],
        runs: Iterable[Sequence[Item]],
        workers: int,
        timeout: float,
        lost: Callable[[Item, str], Result],
        lends: bool = False,
    ) -> None:
        self.function, self.timeout, self.lost, self.lends = function, timeout, lost, lends
        self.fresh = enumerate(runs)
        self.again: deque[Task] = deque()
        self.sizes: list[int] = []  # of the runs begun
        self.done: defaultdict[int, dict[int, Result]] = defaultdict(dict)  # by run and place
        self.lent: defaultdict[int, list[tuple[Slots, int]]] = defaultdict(list)  # by run
        spare = _spare.get() or []
        self.workers = [
            spare.pop().turn_to(function) if spare and spare[-1].is_ready else Worker(function)
            for _ in range(workers)
        ]

    @property
    def is_busy(self) -> bool:
        """Whether a result is still to come."""
        return any(worker.tasks for worker in self.workers)

    def is_done(self, run: int) -> bool:
        """Whether all results of a run are there."""
        return run < len(self.sizes) and len(self.done[run]) == self.sizes[run]

    def take(self, run: int) -> Iterator[Result]:
        """The results of a run that is done, in their order."""
        results = self.done.pop(run)
        for place in range(len(results)):
            yield results.pop(place)
        for slots, slot in self.lent.pop(run, ()):
            slots.free.append(slot)

    def hand_out(self, limit: int) -> None:
        """Give every worker something to do, of the runs before number `limit`."""
        for full in range(1, GIVEN + 1):
            for worker in self.workers:
                if len(worker.tasks) < full and (task := self.following(limit)):
                    worker.give(task, self.lends)

    def following(self, limit: int) -> Task | None:
        """The next task, of the runs before number `limit`."""
        if self.again:
            return self.again.popleft()
        number, run = next(self.fresh, (0, None)) if len(self.sizes) < limit else (0, None)
        if run is None:
            return None
        self.sizes.append(len(run))
        return Task(number, 0, run)

    def listen(self, patiently: bool) -> None:
        """Take what the workers have to say; wait for something if there is nothing else to do."""
        busy = {worker.connection: worker for worker in self.workers if worker.tasks}
        due = min((w.since + self.timeout for w in busy.values() if w.is_ready), default=math.inf)
        left = max(0.0, due - monotonic()) if patiently else 0.0
        for connection in wait(list(busy), None if left == math.inf else left):
            self.hear(busy[connection])
        for worker in busy.values():
            late = worker.is_ready and worker.tasks and monotonic() >= worker.since + self.timeout
            if late and not worker.connection.poll():
                self.give_up(worker, f"timed out after {self.timeout:g} s", TRIES)

    def hear(self, worker: Worker) -> None:
        """Take one message of a worker, or see that it is gone."""
        try:
            message = worker.receive()
        except (EOFError, OSError):
            self.bury(worker)
            return
        worker.heard = monotonic()
        if message is None:
            worker.is_ready = True
            return
        outcomes, error, trace = message
        if error is not None:
            raise error from RuntimeError(f"in a worker process:\n{trace}")
        task = worker.tasks.popleft()
        self.done[task.run].update(enumerate(outcomes, task.first))
        if worker.slots and task.slot is not None:
            self.lent[task.run].append((worker.slots, task.slot))

    def bury(self, worker: Worker) -> None:
        """Go on without a worker that died: what it was at is tried again, once."""
        if not worker.is_ready:
            raise UserError(
                "a worker process ended as it started; if memory is short, give fewer --workers"
            )
        self.give_up(worker, "killed its decoder (or memory ran out)", 1)

    def give_up(self, worker: Worker, reason: str, tries: int) -> None:
        """Put a new worker in the place of one that did not survive the item it was at.

        That counts as `tries` of it. The others of its run come again, each alone, before the tasks
        that waited.
        """
        worker.stop()
        task = worker.tasks.popleft()
        at = min(int(worker.clock[0]), len(task.items) - 1)
        for place in range(len(task.items)):
            one = task.alone(place, task.tried + tries if place == at else 0)
            if one.tried < TRIES:
                self.again.append(one)
            else:
                self.done[one.run][one.first] = self.lost(one.items[0], reason)
        self.again.extend(worker.tasks)
        worker.tasks.clear()  # whoever goes through the workers finds none that is late
        self.workers[self.workers.index(worker)] = Worker(self.function)

    def stop(self) -> None:
        """End all processes, but those that can be kept; nothing is lent any more."""
        for slots, slot in itertools.chain.from_iterable(self.lent.values()):
            slots.free.append(slot)
        spare = _spare.get()
        for worker in self.workers:
            if spare is None or worker.tasks or not worker.is_ready:
                worker.stop()
            else:
                spare.append(worker)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Keep Ctrl-C until after this: a process that is told half of what it is to do says so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fresh_context() -> Any:
    """Processes that inherit no thread and no lock: a plain fork could hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # once, not once a worker
    context.set_forkserver_preload(["shards.single", *PRELOAD, "shards.light"])
    return context
