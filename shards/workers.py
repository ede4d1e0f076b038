"""A function over many items in many processes: results in order, memory bounded, no orphans.

An item that kills its process, or takes too long, costs itself alone.
"""

import contextlib
import ctypes
import itertools
import math
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from shards.errors import UserError

AHEAD = 4  # items begun per worker: enough that one long recording does not idle the others
GIVEN = 3  # items a worker has at once, so that it need not wait for this process
TRIES = 2  # a process that dies may have been the victim of another one's memory
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
PRELOAD = ["shards.recipe", "shards.frames", "soundfile", "soxr", "xxhash"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def available() -> int:
    """The cores that this process may use, which a scheduler can have made fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def ordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    timeout: float,
    lost: Callable[[Item, str], Result],
) -> Generator[Result, None, None]:
    """`map` in `workers` processes of one thread each.

    An item that its process does not survive, twice, or that takes more than `timeout` seconds, has
    as its result what `lost` makes of it and the reason. With one worker and `timeout` 0, which is
    none, all is done in this process. Close the iterator when leaving early: it stops the others.

    Raises:
        UserError: no process can be started.
        Exception: what `function` raises.
    """
    if workers == 1 and not timeout:
        yield from alone(function, items)
        return
    crew = Crew(function, items, workers, timeout or math.inf, lost)
    try:
        for number in itertools.count():
            while True:
                crew.hand_out(number + AHEAD * workers)
                if not crew.is_busy and number not in crew.done:
                    return
                crew.listen(patiently=number not in crew.done)
                if number in crew.done:
                    break
            yield crew.done.pop(number)
    finally:
        crew.stop()


def alone(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
    """`map` on one thread of this process."""
    from threadpoolctl import ThreadpoolController

    for name in PRELOAD:
        import_module(name)
    threads = ThreadpoolController()  # finding the libraries takes 6 ms: not once an item
    for item in items:
        with threads.limit(limits=1):
            outcome = function(item)
        yield outcome


class Task(NamedTuple):
    """An item, its place, and which try this is."""

    number: int
    item: Any
    tried: int


class Worker:
    """A process and the tasks it was given; the first of them is being worked on."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = fresh_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # or its end would not be noticed
        self.tasks: deque[Task] = deque()
        self.is_ready = False
        self.since = monotonic()

    def give(self, task: Task) -> None:
        """Hand a task over; a process that has died is noticed when it is listened to."""
        if not self.tasks:
            self.since = monotonic()
        self.tasks.append(task)
        with contextlib.suppress(OSError):
            self.connection.send(task.item)

    def stop(self) -> None:
        """End the process; it writes nothing, so it may be at anything."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Crew(Generic[Item, Result]):
    """The workers, the tasks that wait for one, and the results that wait for their turn."""

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int,
        timeout: float,
        lost: Callable[[Item, str], Result],
    ) -> None:
        self.function, self.timeout, self.lost = function, timeout, lost
        self.fresh: Iterator[Task] = (Task(n, item, 0) for n, item in enumerate(items))
        self.again: deque[Task] = deque()
        self.begun = 0
        self.done: dict[int, Result] = {}
        self.workers = [Worker(function) for _ in range(workers)]

    @property
    def is_busy(self) -> bool:
        """Whether a result is still to come."""
        return any(worker.tasks for worker in self.workers)

    def hand_out(self, limit: int) -> None:
        """Give every worker something to do, of the items before number `limit`."""
        for full in range(1, GIVEN + 1):
            for worker in self.workers:
                if len(worker.tasks) < full and (task := self.following(limit)):
                    worker.give(task)

    def following(self, limit: int) -> Task | None:
        """The next task before number `limit`."""
        if self.again:
            return self.again.popleft()
        task = next(self.fresh, None) if self.begun < limit else None
        self.begun += task is not None
        return task

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
                task = worker.tasks.popleft()
                self.done[task.number] = self.lost(task.item, f"timed out after {self.timeout:g} s")
                self.replace(worker)

    def hear(self, worker: Worker) -> None:
        """Take one message of a worker, or see that it is gone."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self.bury(worker)
            return
        worker.since = monotonic()
        if message is None:
            worker.is_ready = True
            return
        outcome, error, trace = message
        if error is not None:
            raise error from RuntimeError(f"in a worker process:\n{trace}")
        self.done[worker.tasks.popleft().number] = outcome

    def bury(self, worker: Worker) -> None:
        """Go on without a worker that died: what it was at is tried again, once."""
        if not worker.is_ready:
            raise UserError(
                "a worker process ended as it started; if memory is short, give fewer --workers"
            )
        number, item, tried = worker.tasks.popleft()
        if tried + 1 < TRIES:
            self.again.append(Task(number, item, tried + 1))
        else:
            self.done[number] = self.lost(item, "killed its decoder (or memory ran out)")
        self.replace(worker)

    def replace(self, worker: Worker) -> None:
        """Put a new worker in the place of one; the tasks that it had waiting come first."""
        worker.stop()
        self.again.extend(worker.tasks)
        self.workers[self.workers.index(worker)] = Worker(self.function)

    def stop(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.stop()


def fresh_context() -> Any:
    """Processes that inherit no thread and no lock: a plain fork could hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)  # imported once, not once a worker
    return context


def warm_up() -> None:
    """Have the imports of the workers begin, beside whatever this process goes on to do."""
    if fresh_context().get_start_method() == "forkserver":
        multiprocessing.forkserver.ensure_running()


def serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: an item in, its result or its error out. None says: ready."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=leave_with_parent, daemon=True).start()
    threadpool_limits(1)
    keep_memory()
    connection.send(None)
    while True:
        item = connection.recv()
        message: tuple[Any, Exception | None, str]
        try:
            message = function(item), None, ""
        except Exception as error:
            message = None, error, traceback.format_exc()
        connection.send(message)


def keep_memory() -> None:
    """Have glibc keep what is freed for the next item: some 300 pages that went back to the system
    and came again with each file of 5 s took a fifth of the time."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**25)
        mallopt(M_MMAP_THRESHOLD, 2**24)


def leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
