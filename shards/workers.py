"""A function over many items in many processes: results in order, memory bounded, no orphans.

An item that kills its process, or takes too long, costs itself alone.
"""

import itertools
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from importlib import import_module
from multiprocessing import forkserver, resource_tracker

from shards.crew import PRELOAD, Crew, Item, Result, fresh_context, unbroken

AHEAD = 4  # runs begun per worker: enough that one long recording does not idle the others


def available() -> int:
    """The cores that this process may use, which a scheduler can have made fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_runs(
    items: Iterable[Item],
    most: float,
    size: Callable[[Item], float] = lambda item: 1,
    total: float = math.inf,
    workers: int = 1,
) -> Iterator[list[Item]]:
    """Items in runs of no more than `most` in all, or of one: a message each, and not an item.

    The last of the `total` come in ever shorter ones, or one of the `workers` would still have much
    to do when the others are done.
    """
    run: list[Item] = []
    filled = 0.0
    for item in items:
        if run and filled + size(item) > min(most, total / (2 * workers)):
            yield run
            total -= filled
            run, filled = [], 0.0
        run.append(item)
        filled += size(item)
    if run:
        yield run


def ordered(
    function: Callable[[Item], Result],
    runs: Iterable[Sequence[Item]],
    workers: int,
    *,
    timeout: float,
    lost: Callable[[Item, str], Result],
    lends: bool = False,
) -> Generator[Result, None, None]:
    """`map` over the items of all `runs` in `workers` processes of one thread each.

    A run goes to a process in one message. An item that its process does not survive, twice, or
    that takes more than `timeout` seconds, has as its result what `lost` makes of it and the
    reason. With one worker and `timeout` 0, which is none, all is done in this process. Close the
    iterator when leaving early: it stops the others.

    With `lends`, a pickle.PickleBuffer or an array in a result may lie in memory that is the
    worker's again as soon as the next result is asked for: copy what has to last.

    Raises:
        UserError: no process can be started.
        Exception: what `function` raises.
    """
    if workers == 1 and not timeout:
        yield from alone(function, itertools.chain.from_iterable(runs))
        return
    crew = Crew(function, runs, workers, timeout or math.inf, lost, lends)
    try:
        for number in itertools.count():
            while True:
                crew.hand_out(number + AHEAD * workers)
                if not crew.is_busy and not crew.is_done(number):
                    return
                crew.listen(patiently=not crew.is_done(number))
                if crew.is_done(number):
                    break
            yield from crew.take(number)
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


def warm_up() -> None:
    """Have the imports of the workers begin, beside whatever this process goes on to do."""
    if fresh_context().get_start_method() == "forkserver":
        resource_tracker.ensure_running()  # which would end what `unbroken` begins
        with unbroken():  # for good: a terminal's Ctrl-C goes to it, too, while it imports
            forkserver.ensure_running()
