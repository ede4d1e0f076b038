"""Payloads that were read once and found right: they are copied from memory maps from then on.

`P` samples.
"""

import mmap
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from shards.index import ShardSet

try:
    from shards._native import copy  # type: ignore[import-not-found]
    from shards._native import take as compiled
except ImportError:  # not compiled when this was installed
    copy = compiled = None


class Maps:
    """The memory maps of a feed's shards, and a bit a sample; shared by the threads that read.

    A map's pages are as fast to copy as any memory (bench/gather.py), but slower to fill, and they
    have no errors but a signal: so a payload comes here only after it was read in the plain way.
    With `mapped` false, or without the compiled kernel, only bits.
    """

    def __init__(self, shard_set: "ShardSet", mapped: bool):
        shards = len(shard_set.info["shards"])
        few = shards <= shard_set.open_at_most  # others are closed again and again
        self.mapped = mapped and few and copy is not None and not shard_set.is_remote
        self._bits = np.zeros(len(shard_set) // 8 + 1, np.uint8)
        self._addresses = np.zeros(shards, np.uintp)
        self._sizes = np.zeros(shards, np.uintp)
        self._maps: list[mmap.mmap] = []  # until the last reader has gone
        self._lock = Lock()
        self.identities: dict[int, int] = {}  #: of shards that were opened; see Reader

    def known(self, numbers: np.ndarray) -> np.ndarray:
        """Which samples were found right. Shape: (P,) int64 -> (P,) bool."""
        return (self._bits[numbers >> 3] >> (numbers & 7).astype(np.uint8)).astype(np.uint8) & 1 > 0

    def know(self, numbers: np.ndarray) -> None:
        """These were found right; where two threads say so at once, one may not be heard."""
        np.bitwise_or.at(self._bits, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))

    def missing(self, shards: np.ndarray) -> list[int]:
        """Which of these shards have no map yet. Shape: (P,)."""
        addresses = self._addresses[shards]
        return [] if addresses.all() else np.unique(shards[addresses == 0]).tolist()

    def add(self, shard: int, descriptor: int) -> None:
        """Map a shard."""
        with self._lock, suppress(OSError, ValueError):  # no room, or it is empty by now: read it
            if not self._addresses[shard]:
                self._maps.append(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
                content = np.frombuffer(self._maps[-1], np.uint8)
                self._sizes[shard], self._addresses[shard] = content.size, content.ctypes.data

    def copy(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> int:
        """Copy payloads to these places of `out` until one cannot be read; how many were copied.

        Shape: (P,) of ROW, (_, M, T), (P,).
        """
        shards, offsets = rows["shard"], rows["offset"]
        outside = offsets + np.uintp(out[0].nbytes) > self._sizes[shards]
        count = int(outside.argmax()) if outside.any() else len(rows)
        sources = self._addresses[shards] + offsets
        return copy(rows_of(out, places[:count]), sources[:count], out[0].nbytes)


def rows_of(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The addresses of an array's rows. Shape: (n, ...), (P,) integers -> (P,) uintp."""
    start, step = array.__array_interface__["data"][0], array.strides[0]
    return (start + places * step).astype(np.uintp)


def take(array: np.ndarray, places: np.ndarray, out: np.ndarray) -> bool:
    """Copy rows of a large array; whether all could be read, which of a file's map is not said.

    Without the compiled kernel a page that cannot be read is a signal.
    Shape: (n, ...), (P,) integers from 0 to n - 1, (P, ...).
    """
    if compiled is None:
        np.take(array, places, axis=0, out=out, mode="clip")  # "raise" would copy twice
        return True
    return bool(compiled(array, np.ascontiguousarray(places, np.int64), out) == len(places))
