"""Samples by number, straight from the tars."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ShardError
from shards.index import ShardSet, shard_name


class Reader:
    """Reads samples of one shard set; a context manager; one thread at a time.

    `preadv` into the caller's array and not a memory map: a shard that is truncated under a map
    kills the process by SIGBUS, a short read is an exception that names the shard.
    """

    def __init__(self, shard_set: ShardSet, tars: Path | None = None):
        self.shard_set = shard_set
        if tars is not None:  # not yet together while a set is made
            shard_set = ShardSet(tars, shard_set.info)
        self._tars = shard_set
        self._open: OrderedDict[int, int] = OrderedDict()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the open shards; the reader can go on to be used."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, numbers: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples with these numbers, in this order, in dB.

        Shape: (P,) integers -> (P, M, T) float16, into `out` where it is given.

        Raises:
            ShardError: a shard is missing or too short.
        """
        if out is None:
            out = np.empty((len(numbers), *self.shard_set.shape), np.float16)
        rows = self.shard_set.rows(np.asarray(numbers, np.int64))
        for target, shard, offset in zip(
            out, rows["shard"].tolist(), rows["offset"].tolist(), strict=True
        ):
            self._read_one(shard, offset, target)
        return out

    def _read_one(self, shard: int, offset: int, target: np.ndarray) -> None:
        view, done = memoryview(target.data).cast("B"), 0
        while done < len(view):
            count = os.preadv(self._descriptor(shard), [view[done:]], offset + done)
            if count == 0:
                raise ShardError(f"{self._name(shard)}: ends before byte {offset + len(view)}")
            done += count

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= self._tars.open_at_most:
            os.close(self._open.popitem(last=False)[1])
        try:
            self._open[shard] = self._tars.open_shard(shard)
        except OSError as error:
            raise ShardError(f"{self._name(shard)}: {error.strerror}") from None
        return self._open[shard]

    def _name(self, shard: int) -> str:
        return f"{self._tars}/{shard_name(shard)}"
