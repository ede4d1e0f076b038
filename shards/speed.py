"""How fast a shard set can be read here, beside a memory copy of as many bytes."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import torch

from shards.draws import Stored
from shards.errors import UserError
from shards.feed import Reading, buffers
from shards.index import ShardSet
from shards.loader import Loader
from shards.order import Order, plan_batch

BATCH = 256


def measure(shard_set: ShardSet, seconds: float, threads: int) -> Iterator[str]:
    """A Markdown table, line by line: samples and bytes a second, a way of reading a row.

    Raises:
        UserError: an empty set.
        ShardError: a shard cannot be read.
    """
    n = len(shard_set.index)
    if n == 0:
        raise UserError(f"{shard_set.path}: no samples to read; build it with some")
    size = min(BATCH, n)
    sample = 2 * int(np.prod(shard_set.shape))
    shuffled, reading = Order(n, size, 0), Reading(threads)
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "memory copy": partial(copies, shard_set, size, threads),
        "in turn": partial(through, shard_set, replace(shuffled, draw=Stored(n)), reading),
        "shuffled": partial(through, shard_set, shuffled, reading),
        "shuffled, in memory": partial(
            through, shard_set, shuffled, replace(reading, resident="memory")
        ),
    }
    if importlib.util.find_spec("webdataset") and not shard_set.is_remote:  # it has no cache
        ways["webdataset"] = partial(by_webdataset, shard_set)
    yield f"| {size} samples a batch, {threads} threads | samples/s | GB/s | of a memory copy |"
    yield "|---|---|---|---|"
    copied = 0.0
    for name, way in ways.items():
        rate = rate_of(way(), n, seconds)
        copied = copied or rate
        yield f"| {name} | {rate:,.0f} | {rate * sample / 1e9:.2f} | {rate / copied:.0%} |"


def rate_of(counts: Iterator[int], n: int, seconds: float) -> float:
    """Samples a second, after two passes (half the time at most) that fill caches and maps."""
    begun, seen = time.perf_counter(), 0
    while seen < 2 * n and time.perf_counter() - begun < seconds / 2:
        seen += next(counts)
    begun, seen = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < seconds / 2 or seen == 0:
        seen += next(counts)
    counts.close()  # type: ignore[attr-defined]
    return seen / took


def copies(shard_set: ShardSet, size: int, threads: int) -> Iterator[int]:
    """Copy a large array into buffers like those that a feed fills, by as many threads."""
    step = size * int(np.prod(shard_set.shape))
    room = max(2 * step, min(len(shard_set.index) * step // size, 1 << 28))
    source = torch.ones(room, dtype=torch.float16).numpy()
    ring = torch.zeros((buffers(2 * step), step), dtype=torch.float16).numpy()
    parts = [slice(step * n // threads, step * (n + 1) // threads) for n in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for turn in count():
            at = turn % (room // step) * step
            into, out_of = ring[turn % len(ring)], source[at : at + step]
            list(pool.map(np.copyto, (into[p] for p in parts), (out_of[p] for p in parts)))
            yield size


def through(shard_set: ShardSet, order: Order, reading: Reading) -> Iterator[int]:
    """Batches by the loader."""
    plan, numbers = plan_batch(order.batch_size, None, 1), np.arange(order.n)
    loader = Loader(shard_set, numbers, order, plan, 0, torch.device("cpu"), reading)
    for batches in loader.steps(0, 1 << 40):
        yield len(batches[0].y)


def by_webdataset(shard_set: ShardSet) -> Iterator[int]:
    """Samples as plain webdataset decodes them, in this process."""
    import webdataset

    urls = [str(path) for path in shard_set.shard_paths]
    while True:
        for _ in webdataset.WebDataset(urls, shardshuffle=False).decode():
            yield 1
