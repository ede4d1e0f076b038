"""Samples by number, straight from the tars."""

import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import xxhash

from shards.errors import ShardError
from shards.index import ShardSet

_LOOK_EVERY = 1.0  # seconds


class _File(NamedTuple):
    descriptor: int
    path: str
    identity: tuple[int, ...]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Reader:
    """Reads samples of one shard set; a context manager; one thread at a time.

    `preadv` into the caller's array and not a memory map: a shard that is truncated under a map
    kills the process by SIGBUS, a short read is an exception that names the shard. With `check`
    each payload is held against its checksum in the index, while it is in the processor's cache.
    """

    def __init__(self, shard_set: ShardSet, check: bool = True):
        self.shard_set, self.check = shard_set, check
        self.bytes = 0  #: read so far
        self._open: dict[int, _File] = {}
        self._doing: int | str = "at rest"  # a word, or the shard that is read
        self._next_look = 0.0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the open shards; the reader can go on to be used."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    @property
    def doing(self) -> str:
        """What it is at, for a message; may be asked for by another thread."""
        doing = self._doing
        file = self._open.get(doing) if isinstance(doing, int) else None
        return f"reading {file.path}" if file else str(doing)

    def read(self, numbers: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples with these numbers, in this order, in dB.

        Shape: (P,) integers -> (P, M, T) float16, into `out` where it is given.

        Raises:
            ShardError: a shard is missing, too short, or not what the index says.
        """
        if out is None:
            out = np.empty((len(numbers), *self.shard_set.shape), np.float16)
        self.read_rows(self.shard_set.rows(np.asarray(numbers, np.int64)), out)
        return out

    def read_rows(self, rows: np.ndarray, out: Iterable[np.ndarray]) -> None:
        """The samples that these rows of the index tell of, each into its own (M, T) of `out`.

        Start each on a multiple of 64 bytes: the kernel copies to other addresses at half speed.
        """
        fields = (rows[name].tolist() for name in ("shard", "offset", "xxh3"))
        shard, size = -1, 2 * int(np.prod(self.shard_set.shape))
        preadv, digest, known = os.preadv, xxhash.xxh3_64_intdigest, self._open.get
        try:
            for target, shard, offset, checksum in zip(out, *fields, strict=True):
                file = known(shard) or self._opened(shard)
                self._doing = shard
                done = preadv(file.descriptor, (target,), offset)
                if done < size:
                    self._read_on(file, target, offset, done)
                if self.check and digest(target) != checksum:
                    raise ShardError(f"{file.path}: other bytes at {offset} than the index says")
            self.bytes += size * len(rows)
        except OSError as error:
            raise ShardError(f"{self.shard_set.shard_place(shard)}: {error.strerror}") from None
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
        return file
