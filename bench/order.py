"""The order of training: how random, beside numpy's permutation, how fast, and in how much memory.

python bench/order.py [--n=1000000] [--rounds=5] [--write]
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import process_time
from unittest.mock import patch

import numpy as np
from side_by_side import MARKS, arguments, conditions, mark, one_thread, publish

from shards import draws, randomness
from shards.draws import Full, Grouped, Weighted, Window
from shards.order import Order

A_SHARD, WIDTH, CLASSES, SEED = 1000, 8, 10, 1


def epochs_of(draw: Callable[[np.ndarray], np.ndarray], n: int) -> list[np.ndarray]:
    """The first two epochs."""
    return [draw(np.arange(turn * n, (turn + 1) * n)) for turn in (0, 1)]


def repeats(first: np.ndarray, second: np.ndarray) -> int:
    """How many two neighbours of one epoch are neighbours in the next one too."""
    pairs = []
    for order in (first, second):
        low, high = np.sort([order[:-1], order[1:]], axis=0)
        pairs.append(low * len(order) + high)
    return len(np.intersect1d(*pairs))


def runs(order: np.ndarray) -> tuple[float, int]:
    """Mean and longest run of one class, where classes are stored one after the other."""
    edges = np.flatnonzero(np.diff(order * CLASSES // len(order)))
    lengths = np.diff(np.concatenate([[-1], edges, [len(order) - 1]]))
    return float(lengths.mean()), int(lengths.max())


def quality(name: str, orders: list[list[np.ndarray]]) -> str:
    """A row: medians over seeds of what two epochs look like."""
    rows = []
    for first, second in orders:
        inside = abs(np.corrcoef(np.arange(len(first)), first)[0, 1])
        across = abs(np.corrcoef(first, second)[0, 1])
        rows.append((inside, across, repeats(first, second), *runs(first)))
    inside, across, again, mean, longest = (statistics.median(x) for x in zip(*rows, strict=True))
    return f"| {name} | {inside:.5f} | {across:.5f} | {again:g} | {mean:.4f} | {longest:g} |"


def rate(order: Order, batch_size: int, steps: int) -> float:
    """Million positions a second of this core, asked for batch by batch."""
    order.batch(0, range(batch_size))
    began = process_time()
    for step in range(steps):
        order.batch(step, range(batch_size))
    return steps * batch_size / (process_time() - began) / 1e6


@contextmanager
def by_numpy() -> Iterator[None]:
    """Without the compiled kernel, as where nobody could compile it."""
    with patch.object(randomness, "compiled", None), patch.multiple(draws, count=None, locate=None):
        yield


def main() -> None:
    words = arguments(__doc__ or "", n=1_000_000, rounds=5)
    one_thread()
    n, rounds = words.n, words.rounds
    bounds = np.arange(0, n + A_SHARD, A_SHARD).clip(max=n)
    seeds = range(rounds)
    lines = [
        f"{n:,} samples, shards of {A_SHARD}, windows of {WIDTH} shards, {CLASSES} classes, stored "
        "one after the other; medians over seeds. Correlations are of sample number with position, "
        "and of an epoch with the next; repeats are neighbours that are so in both (2 by chance).",
        "",
        "| | correlation | with next epoch | repeats | mean run of a class | longest |",
        "|---|---|---|---|---|---|",
        quality("numpy's permutation", [
            [np.random.default_rng([s, e]).permutation(n) for e in (0, 1)] for s in seeds
        ]),
        quality("full", [epochs_of(Full(n, s), n) for s in seeds]),
        quality("window", [epochs_of(Window(bounds, WIDTH, s), n) for s in seeds]),
        "",
        "| million positions a second of one core | batches of 32 | 256 | 4096 |",
        "|---|---|---|---|",
    ]  # fmt: skip
    even = np.diff(np.linspace(0, n, CLASSES + 1).astype(int))
    orders = {
        "full": Full(n, SEED),
        "full, 10^9 samples": Full(10**9, SEED),
        "window": Window(bounds, WIDTH, SEED),
        "class-balanced": Grouped(even, np.ones(CLASSES), SEED),
        "weights of samples": Weighted([np.arange(1.0, n + 1)], n, n, SEED),
    }
    found: dict[tuple[str, int], list[float]] = {}
    plain: dict[str, list[float]] = {name: [] for name in orders}
    marks: list[str] = []
    for _ in range(rounds):
        for name, draw in orders.items():
            for size in (32, 256, 4096):
                order = Order(10**9 if "9" in name else n, size, SEED, draw=draw)
                found.setdefault((name, size), []).append(rate(order, size, 2**20 // size))
            with by_numpy():
                order = Order(10**9 if "9" in name else n, 256, SEED, draw=draw)
                plain[name].append(rate(order, 256, 2**12))
    for name in orders:
        marks.append(mark(f"{name}, batches of 256", sorted(found[name, 256]), 20, "{:.1f}"))
        cells = [f"{statistics.median(found[name, size]):.1f} ({min(found[name, size]):.1f} to "
                 f"{max(found[name, size]):.1f})" for size in (32, 256, 4096)]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, slow in plain.items():
        gained = sorted(a / b for a, b in zip(found[name, 256], slow, strict=True))
        marks.append(mark(f"{name}, compiled kernel : numpy", gained, 1.5))
    lines += [*MARKS, *marks, "", conditions(rounds, ["numpy"])]
    publish("order", "Order of training", lines, words.write)


if __name__ == "__main__":
    main()
