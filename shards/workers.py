"""A function over many items in many processes: results in order, memory bounded, no orphans."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from typing import Any, TypeVar

from shards.errors import UserError

AHEAD = 3  # items begun per worker: enough that one long recording does not idle the others
PRELOAD = ["shards.write", "librosa.filters", "soundfile", "soxr", "torch"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def available() -> int:
    """The cores that this process may use, which a scheduler can have made fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """`map` in `workers` processes of one thread each; with one worker, in this process.

    Close the iterator when leaving early: it stops the processes.

    Raises:
        UserError: a process died.
    """
    if workers == 1:
        yield from alone(function, items)
        return
    pool = ProcessPoolExecutor(workers, mp_context=fresh_context(), initializer=settle)
    begun: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            begun.append((item, submit(pool, function, item)))
            if len(begun) >= AHEAD * workers:
                yield result(*begun.popleft())
        while begun:
            yield result(*begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


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


def fresh_context() -> Any:
    """Processes that inherit no thread and no lock: a plain fork could hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)  # imported once, not once a worker
    return context


def settle() -> None:
    """Run first in each worker: one thread, Ctrl-C is the parent's, and no life without it."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def submit(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item
) -> Future[Result]:
    """A future in any case: a pool that broke meanwhile gives one that says so."""
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        future: Future[Result] = Future()
        future.set_exception(error)
        return future


def result(item: Item, future: "Future[Result]") -> Result:
    """What became of `item`."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise UserError(
            f"a worker process died at or near {item}: killed, or out of memory; start again to go "
            "on, with fewer --workers if memory was short"
        ) from None
