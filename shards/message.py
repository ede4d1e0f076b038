"""Messages between processes, their large buffers uncopied."""

import os
import pickle
from multiprocessing.connection import Connection
from typing import Any

BEHIND = 1 << 14  # bytes from where on a buffer goes behind its message


def send(connection: Connection, message: Any) -> None:
    """Send a message, and behind it its larger buffers as they are (PEP 574)."""
    behind: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if (view := buffer.raw()).nbytes >= BEHIND:
            behind.append(view)
        return view.nbytes < BEHIND

    data = pickle.dumps(message, 5, buffer_callback=is_small)
    connection.send((data, [view.nbytes for view in behind]))
    for view in behind:
        while view:
            view = view[os.write(connection.fileno(), view) :]


def receive(connection: Connection) -> Any:
    """What `send` sent.

    Raises:
        EOFError, OSError: the other process is gone.
    """
    data, sizes = connection.recv()
    return pickle.loads(data, buffers=[read(connection.fileno(), size) for size in sizes])


def read(descriptor: int, size: int) -> bytearray:
    """The next `size` bytes."""
    room = bytearray(size)
    left = memoryview(room)
    while left:
        if not (n := os.readv(descriptor, [left])):
            raise EOFError
        left = left[n:]
    return room
