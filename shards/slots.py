"""Memory that a worker shares with the process that started it, a slot for each run it is given:
what it makes is put there once, and does not go through the kernel."""

import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any

SIZE, COUNT = 1 << 20, 8  # bytes of a slot: a run of 60 s of audio makes 0.5 MB by default


class Slots:
    """`COUNT` slots of `SIZE` bytes; they go to another process with the words that start it.

    Not a named file in /dev/shm, which may be full, and would outlive a kill.

    Raises:
        AttributeError: this system has no such memory; Linux has.
        OSError: there is none left, or too many files are open.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("slots")
            os.ftruncate(descriptor, SIZE * COUNT)
        self.descriptor = descriptor
        self.memory = memoryview(mmap.mmap(descriptor, SIZE * COUNT))
        self.free = list(range(COUNT))

    def __reduce__(self) -> tuple[Any, ...]:
        return attached, (DupFd(self.descriptor),)

    def __getitem__(self, slot: int) -> memoryview:
        """The bytes of a slot."""
        return self.memory[slot * SIZE : (slot + 1) * SIZE]

    def take(self) -> int | None:
        """A slot that nobody uses: the last that was, which a cache still holds."""
        return self.free.pop() if self.free else None

    def settle(self) -> None:
        """Keep no descriptor, as the other process has its own: hundreds of workers would use up
        what this one may have. The memory goes when nobody reads it any more."""
        os.close(self.descriptor)
        self.descriptor = -1


def attached(duplicate: Any) -> Slots:
    """The same slots in the process that was started."""
    slots = Slots(duplicate.detach())
    slots.settle()
    return slots


def make_slots() -> Slots | None:
    """New ones, where there can be any."""
    try:
        return Slots()
    except (AttributeError, OSError):
        return None
