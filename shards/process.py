"""The life of a worker: one thread, memory that is kept, and no longer than who started it;
and what these two say to each other, large buffers beside."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from shards.slots import Slots

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
LARGE = 1 << 12  # bytes from where on a buffer is no part of its message
MOST = 2**25  # an older glibc has no larger threshold, and would be left with its least


class Stages:
    """Functions one after the other, as one. A worker does each for all items of a run before the
    next, so that the code of each stays in the processor's cache."""

    def __init__(self, *steps: Callable[[Any], Any]) -> None:
        self.steps = steps

    def __call__(self, item: Any) -> Any:
        for step in self.steps:
            item = step(item)
        return item


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Have Python look for garbage seldom: a build makes little, and each look goes through
    all that was imported."""
    before = gc.get_threshold()
    gc.set_threshold(10**6)  # new objects
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # what is new counts as old, and is not looked through now
        gc.set_threshold(*before)


def serve(
    connection: Connection, function: Callable[[Any], Any], clock: Any, slots: Slots | None
) -> None:
    """The life of a worker: items and a slot in, their results or an error out, or another function
    in. None says: ready."""
    gc.freeze()  # to look through what was imported would copy its pages
    gc.enable()  # which shards.single ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=leave_with_parent, daemon=True).start()
    if "shards.single" not in sys.modules:  # spawned, not forked
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)
    keep_memory(2**24)  # else some 300 pages go and come with each file of 5 s
    send(connection, None)
    while True:
        task = connection.recv()
        if callable(task):
            function = task
            send(connection, None)
            continue
        items, slot = task
        message: tuple[Any, Exception | None, str]
        try:
            message = outcomes(function, items, clock), None, ""
        except Exception as error:
            message = None, error, traceback.format_exc()
        send(connection, message, None if slot is None or slots is None else slots[slot])
        del message  # or the next results would be made beside them


def outcomes(function: Callable[[Any], Any], items: Sequence[Any], clock: Any) -> list[Any]:
    """What becomes of the items; `clock` tells which is being worked on, and since when."""
    done = list(items)
    for step in function.steps if isinstance(function, Stages) else [function]:
        for place, item in enumerate(done):
            clock[:] = place, monotonic()
            done[place] = step(item)
    return done


def keep_memory(size: int) -> None:
    """Have glibc keep freed blocks of up to `size` bytes for whoever asks next, and twice as much
    at the end of its heap: the kernel clears each page that goes back to it and comes again."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(M_MMAP_THRESHOLD, size):
            mallopt(M_MMAP_THRESHOLD, MOST)
        mallopt(M_TRIM_THRESHOLD, min(2 * size, 2**31 - 1))


def leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def send(connection: Connection, message: Any, room: memoryview | None = None) -> None:
    """Send a message, and its larger buffers as they are (PEP 574): in `room` while they fit, and
    else behind it."""
    large: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if (view := buffer.raw()).nbytes >= LARGE:
            large.append(view)
        return view.nbytes < LARGE

    data = pickle.dumps(message, 5, buffer_callback=is_small)
    places: list[tuple[int, int]] = []  # where in the room, or -1, and how many bytes
    behind, used = [], 0
    for view in large:
        end = used + view.nbytes
        if room is not None and end <= len(room):
            room[used:end] = view
            places.append((used, view.nbytes))
            used = end
        else:
            places.append((-1, view.nbytes))
            behind.append(view)
    connection.send((data, places))
    for view in behind:
        while view:
            view = view[os.write(connection.fileno(), view) :]


def receive(connection: Connection, room: memoryview | None = None) -> Any:
    """What `send` sent; what is in `room` is only lent.

    Raises:
        EOFError, OSError: the other process is gone.
    """
    data, places = connection.recv()
    buffers = (
        read(connection.fileno(), size) if room is None or start < 0 else room[start : start + size]
        for start, size in places
    )
    return pickle.loads(data, buffers=buffers)


def read(descriptor: int, size: int) -> bytearray:
    """The next `size` bytes."""
    room = bytearray(size)
    left = memoryview(room)
    while left:
        if not (n := os.readv(descriptor, [left])):
            raise EOFError
        left = left[n:]
    return room
