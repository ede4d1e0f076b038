"""Ways to bring one sample from the page cache into a batch buffer: what maps and a kernel earn.

One thread, random samples of many tars.
"""

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from batches import BATCH, random_samples, write_set
from side_by_side import arguments, conditions, one_thread, publish, take_turns, times

from shards import maps as kernel
from shards.maps import Maps
from shards.read import Reader


def main() -> None:
    """Measure and print."""
    words = arguments(__doc__ or "", rounds=5, samples=8192, frames=157)
    one_thread()
    random = np.random.default_rng(0)
    samples = random_samples(words.samples, words.frames)
    size, n = samples[0].nbytes, words.samples // BATCH * BATCH
    order = random.permutation(words.samples)[:n].reshape(-1, BATCH)
    aligned = torch.zeros((4, BATCH, size), dtype=torch.uint8).numpy()
    skewed = torch.zeros(aligned.size + 64, dtype=torch.uint8)[16 : aligned.size + 16]
    with tempfile.TemporaryDirectory() as place:
        shard_set = write_set(Path(place), samples)
        files = [os.open(path, os.O_RDONLY) for path in shard_set.shard_paths]
        maps = [np.frombuffer(mmap.mmap(f, 0, access=mmap.ACCESS_READ), np.uint8) for f in files]
        checked, unchecked = Reader(shard_set), Reader(shard_set, check=False)
        mapped = Reader(shard_set, maps=Maps(shard_set, mapped=kernel.copy is not None))

        def each(buffers: np.ndarray, one: Callable[[np.ndarray, int, int], object]) -> None:
            for k, numbers in enumerate(order):
                rows = shard_set.rows(numbers)
                shards, offsets = rows["shard"].tolist(), rows["offset"].tolist()
                for target, shard, offset in zip(buffers[k % 4], shards, offsets, strict=True):
                    one(target, shard, offset)

        def by_map(target: np.ndarray, shard: int, offset: int) -> None:
            target[:] = maps[shard][offset : offset + size]

        def by_preadv(target: np.ndarray, shard: int, offset: int) -> None:
            os.preadv(files[shard], (target,), offset)

        def by_reader(reader: Reader) -> None:
            for k, numbers in enumerate(order):
                reader.read_rows(shard_set.rows(numbers), numbers, aligned[k % 4])

        def copy() -> None:
            for k in range(len(order)):
                part = samples[k * BATCH : (k + 1) * BATCH].reshape(BATCH, -1).view(np.uint8)
                np.copyto(aligned[k % 4], part)

        off = skewed.numpy().reshape(aligned.shape)
        turns = take_turns(
            {
                "memory copy": copy,
                "memory map": lambda: each(aligned, by_map),
                "preadv": lambda: each(aligned, by_preadv),
                "preadv, buffers 16 bytes off": lambda: each(off, by_preadv),
                "Reader, unchecked": lambda: by_reader(unchecked),
                "Reader": lambda: by_reader(checked),
                "Reader, read before": lambda: by_reader(mapped),
            },
            words.rounds,
        )
        for reader in (checked, unchecked, mapped):
            reader.close()
    lines = [conditions(words.rounds, ["numpy", "torch", "xxhash"]), ""]
    lines += times(turns, dict.fromkeys(turns, n), f"sample of {size:,} bytes")
    publish("read", "One sample from the page cache", lines, words.write)


if __name__ == "__main__":
    main()
