"""Ways to bring samples from the page cache into a batch: preadv, io_uring, mapped pages.

    python bench/gather.py [--rounds=9] [--samples=8192] [--frames=157] [--write]

One thread, random samples of many tars, a batch at a time. liburing writes into bytearrays alone,
which do not begin on multiples of 64 bytes: preadv is measured with those, too.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import liburing
import numpy as np
import torch
from batches import BATCH, random_samples, write_set
from side_by_side import MARKS, arguments, conditions, mark, one_thread, publish, ratio, take_turns
from side_by_side import times as table

from shards.index import ShardSet
from shards.maps import Maps
from shards.read import Reader

Ways = dict[str, Callable[[np.ndarray], object]]


def ways(shard_set: ShardSet, size: int, batch: np.ndarray, room: list[bytearray]) -> Ways:
    """Functions that bring the samples with some numbers into `batch`, or into `room`."""
    files = [os.open(path, os.O_RDONLY) for path in shard_set.shard_paths]
    pages = [np.frombuffer(mmap.mmap(f, 0, access=mmap.ACCESS_READ), np.uint8) for f in files]
    reader = Reader(shard_set, maps=Maps(shard_set, True))
    rows = list(batch.reshape(len(batch), -1).view(np.uint8))
    ring = liburing.Ring()
    liburing.io_uring_queue_init(len(batch), ring)

    def places(numbers: np.ndarray, targets: list) -> Iterator[tuple]:
        found = shard_set.rows(numbers)
        return zip(targets, found["shard"].tolist(), found["offset"].tolist(), strict=True)

    def preadv(numbers: np.ndarray, targets: list) -> None:
        for target, shard, offset in places(numbers, targets):
            os.preadv(files[shard], (target,), offset)

    def io_uring(numbers: np.ndarray) -> None:
        for target, shard, offset in places(numbers, room):
            entry = liburing.io_uring_get_sqe(ring)
            liburing.io_uring_prep_read(entry, files[shard], target, offset)
        liburing.io_uring_submit_and_wait(ring, len(numbers))
        liburing.io_uring_cq_advance(ring, len(numbers))

    def slices(numbers: np.ndarray) -> None:
        for target, shard, offset in places(numbers, rows):
            target[:] = pages[shard][offset : offset + size]

    return {
        "preadv": lambda numbers: preadv(numbers, rows),
        "preadv into bytearrays": lambda numbers: preadv(numbers, room),
        "io_uring into bytearrays": io_uring,
        "mapped pages, sliced by numpy": slices,
        "mapped pages, by the kernel": lambda numbers: reader.read(numbers, batch),
    }


def main() -> None:
    """Measure and print."""
    words = arguments(__doc__ or "", rounds=9, samples=8192, frames=157)
    one_thread()
    samples = random_samples(words.samples, words.frames)
    size, n = samples[0].nbytes, words.samples // BATCH * BATCH
    batches = np.random.default_rng(0).permutation(words.samples)[:n].reshape(-1, BATCH)
    batch = torch.empty((BATCH, *samples.shape[1:]), dtype=torch.float16).numpy()
    room = [bytearray(size) for _ in range(BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        known = ways(write_set(Path(folder), samples), size, batch, room)
        for name, way in known.items():
            for numbers in batches:
                way(numbers)
                found = b"".join(room) if "bytearrays" in name else batch.tobytes()
                assert found == samples[numbers].tobytes(), name

        def through(way: Callable[[np.ndarray], object]) -> Callable[[], None]:
            return lambda: [way(numbers) for numbers in batches] and None

        def copy() -> None:
            for part in samples[:n].reshape(-1, *batch.shape):
                np.copyto(batch, part)

        runs = {name: through(way) for name, way in known.items()}
        turns = take_turns({"memory copy": copy, **runs}, words.rounds)
    lines = [conditions(words.rounds, ["numpy", "torch", "xxhash", "liburing"]), ""]
    lines += table(turns, dict.fromkeys(turns, n), f"sample of {size:,} bytes")
    kernel, ring = turns["mapped pages, by the kernel"], turns["io_uring into bytearrays"]
    lines += [
        *MARKS,
        mark("preadv : mapped pages, by the kernel", ratio(turns["preadv"], kernel), 1.5),
    ]
    alike = ratio(turns["preadv into bytearrays"], ring)
    spread = f"{alike[0]:.2f} to {alike[-1]:.2f}"
    lines += ["", f"preadv : io_uring, both into bytearrays: {np.median(alike):.2f}x ({spread})."]
    publish("gather", "Samples from the page cache, way by way", lines, words.write)


if __name__ == "__main__":
    main()
