"""Samples by number, straight from the tars."""

import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import xxhash

from shards.errors import ShardError
from shards.index import ShardSet
from shards.maps import Maps

_LOOK_EVERY = 1.0  # seconds


class _File(NamedTuple):
    descriptor: int
    path: str
    identity: tuple[int, ...]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Reader:
    """Reads samples of one shard set; a context manager; one thread at a time.

    `preadv` into the caller's array: a short read is an exception that names the shard. With
    `check` each payload is held against its checksum in the index, while it is in the processor's
    cache. With `maps` that is done once, and then they serve.
    """

    def __init__(self, shard_set: ShardSet, check: bool = True, maps: Maps | None = None):
        self.shard_set, self.check = shard_set, check
        self.maps = maps
        self.bytes = 0  #: read so far
        self._open: dict[int, _File] = {}
        # The hash of a shard's identity, also once it is closed, and by whoever shares the maps.
        self._known: dict[int, int] = {} if maps is None else maps.identities
        self._size = 2 * int(np.prod(shard_set.shape))
        self._doing: str | int | np.ndarray = "at rest"  # a word, or the shards that are read
        self._next_look = 0.0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the open shards; the reader can go on to be used, without maps."""
        self.maps = None
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    @property
    def doing(self) -> str:
        """What it is at, for a message; may be asked for by another thread."""
        doing = self._doing
        if isinstance(doing, str):
            return doing
        return "reading " + ", ".join(
            map(self.shard_set.shard_place, np.unique(doing).tolist()[:4])
        )

    @doing.setter
    def doing(self, what: str) -> None:
        self._doing = what

    def read(self, numbers: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples with these numbers, in this order, in dB.

        Shape: (P,) integers -> (P, M, T) float16, into `out` where it is given.

        Raises:
            ShardError: a shard is missing, too short, or not what the index says.
        """
        if out is None:
            out = np.empty((len(numbers), *self.shard_set.shape), np.float16)
        numbers = np.asarray(numbers, np.int64)
        self.read_rows(self.shard_set.rows(numbers), numbers, out, np.arange(len(numbers)))
        return out

    def read_rows(
        self, rows: np.ndarray, numbers: np.ndarray, out: np.ndarray, places: np.ndarray
    ) -> None:
        """`read`, for whoever has the rows of the index already, to these places of `out`.

        Start each place on a multiple of 64 bytes: the kernel copies to others at half speed.
        """
        maps = self.maps
        known = np.zeros(len(rows), bool) if maps is None else maps.known(numbers)
        if maps is None or not known.all():
            new = np.flatnonzero(~known)
            self._fetch(rows[new], [out[n] for n in places[new].tolist()], self.check)
            if maps is None:
                return
            maps.know(numbers[new])
            rows, places = rows[known], places[known]
        self._again(maps, rows, out, places)

    def check_shard(self, shard: int) -> None:
        """Find all samples of a shard right, so that they are copied from its map from now on.

        Raises:
            ShardError: they are not, or it cannot be read.
        """
        numbers = np.arange(*self.shard_set.shard_ends[shard : shard + 2])
        rows, one = self.shard_set.rows(numbers), np.empty(self.shard_set.shape, np.float16)
        if self.check:
            self._fetch(rows, [one] * len(rows), True)
        if self.maps is not None:
            self.maps.know(numbers)

    def has(self, rows: np.ndarray) -> bool:
        """Whether the samples of these rows of the index can be read without a disk, or nobody
        knows: only Linux says so, and not of all file systems."""
        if not hasattr(os, "RWF_NOWAIT"):
            return True
        byte = bytearray(1)
        try:
            for shard, offset in zip(rows["shard"].tolist(), rows["offset"].tolist(), strict=True):
                descriptor = (self._open.get(shard) or self._opened(shard)).descriptor
                os.preadv(descriptor, (byte,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # reading will say
            pass
        return True

    def _fetch(self, rows: np.ndarray, targets: Iterable[np.ndarray], check: bool) -> None:
        """From the files, each into its (M, T)."""
        fields = (rows[name].tolist() for name in ("shard", "offset", "xxh3"))
        shard, preadv, digest, known = -1, os.preadv, xxhash.xxh3_64_intdigest, self._open.get
        try:
            for target, shard, offset, checksum in zip(targets, *fields, strict=True):
                file = known(shard) or self._opened(shard)
                self._doing = shard
                done = preadv(file.descriptor, (target,), offset)
                if done < self._size:
                    self._read_on(file, target, offset, done)
                if check and digest(target) != checksum:
                    raise ShardError(f"{file.path}: other bytes at {offset} than the index says")
            self.bytes += self._size * len(rows)
        except OSError as error:
            raise ShardError(f"{self.shard_set.shard_place(shard)}: {error.strerror}") from None
        self._doing = "at rest"

    def _again(self, maps: Maps, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Samples that were found right before."""
        done = 0
        if maps.mapped:
            for shard in maps.missing(rows["shard"]):
                maps.add(shard, (self._open.get(shard) or self._opened(shard)).descriptor)
            self._doing = rows["shard"]
            done = maps.copy(rows, out, places)
            self.bytes += done * self._size
        if done < len(rows):  # a page that cannot be read: the plain way says why
            rest = [out[n] for n in places[done:].tolist()]
            self._fetch(rows[done:], rest, self.check and maps.mapped)
        self._doing = "at rest"

    def look(self) -> None:
        """Find out, at most once a second, whether the open shards are still the files they were.

        Raises:
            ShardError: one was changed or removed.
        """
        if time.monotonic() < self._next_look or self.shard_set.is_remote:
            return  # a cache checks what it fetches, and may drop what it likes
        self._next_look = time.monotonic() + _LOOK_EVERY
        for _, path, identity in self._open.values():
            try:
                found = _identity(os.stat(path))
            except OSError as error:
                raise ShardError(f"{path}: {error.strerror}, while it was in use") from None
            if found != identity:
                raise ShardError(f"{path}: changed while it was in use")

    def _read_on(self, file: _File, target: np.ndarray, offset: int, done: int) -> None:
        view = memoryview(target.data).cast("B")
        while done < len(view):
            count = os.preadv(file.descriptor, [view[done:]], offset + done)
            if count == 0:
                raise ShardError(f"{file.path}: ends before byte {offset + len(view)}")
            done += count

    def _opened(self, shard: int) -> _File:
        while len(self._open) >= self.shard_set.open_at_most:
            os.close(self._open.pop(next(iter(self._open))).descriptor)
        self._doing = f"waiting for shard {shard}"
        path = self.shard_set.shard_place(shard)
        self._doing = f"opening {path}"
        descriptor = self.shard_set.open_shard(shard)
        self._open[shard] = file = _File(descriptor, path, _identity(os.fstat(descriptor)))
        found = hash(file.identity)
        if self._known.setdefault(shard, found) != found and not self.shard_set.is_remote:
            raise ShardError(f"{path}: changed while it was in use")
        return file
