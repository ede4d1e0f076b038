"""Draws: which sample stands at a global position. Pure functions, so any rank can start anywhere.

A draw maps global positions, counted through all epochs, to places 0 .. n-1 of a selection. The
sequence knows nothing of batches, ranks or epochs. Shape: (P,) int64 -> (P,) int64.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from shards.randomness import key, mix, permute, uniform

try:
    from shards._native import count, locate  # type: ignore[import-not-found]
except ImportError:  # not compiled when this was installed
    count = locate = None

Draw = Callable[[np.ndarray], np.ndarray]

_CYCLE = 1 << 18  # positions after which the schedule of groups repeats: shares are kept to 1/2^18
_GOLDEN = 0.6180339887498949  # steps of this spread over [0, 1) as evenly as any
_FAN = 64  # weights under one float64 of the cumulative distribution
_GUIDES = 4  # times as many guesses as spans
# First words of the keys, so that no two purposes draw alike.
_FULL, _SHARDS, _INSIDE, _SCHEDULE, _MEMBER, _STRATUM = range(1, 7)


def turns(positions: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`positions` as (whole turns through n, the rest); one turn stands for all if it is theirs."""
    whole = positions // n
    rest = positions - whole * n
    return (whole[:1] if len(whole) and whole.min() == whole.max() else whole), rest


class Spans:
    """Which span between rising `edges` (S + 1,) a number falls into, found by a table of guesses.

    Edges begin at 0; a number is not below that, and below the last one.
    """

    def __init__(self, edges: np.ndarray):
        self.edges = np.ascontiguousarray(edges, np.float64)
        guesses, end = max(1, _GUIDES * (len(edges) - 1)), float(self.edges[-1])
        first = self._search(np.arange(guesses + 1) * (end / guesses))
        self._guide = np.minimum(first, len(edges) - 2).astype(np.uint32)
        self._scale = guesses / end if end else 0.0

    def _search(self, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.edges, numbers, "right") - 1

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Shape: (P,) float64 -> (P,) int64."""
        if locate is not None:
            span = np.empty(len(numbers), np.int64)
            locate(numbers, self.edges, self._guide, self._scale, span)
            return span
        span = self._guide.take((numbers * self._scale).astype(np.int64)).astype(np.int64)
        span += numbers >= self.edges.take(span + 1)
        far = np.flatnonzero(
            (numbers < self.edges.take(span)) | (numbers >= self.edges.take(span + 1))
        )
        span[far] = self._search(numbers[far])
        return span


class Stored:
    """No shuffling: the order of the selection, again and again."""

    def __init__(self, n: int):
        self.n = n

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return positions % self.n


class Full:
    """A full shuffle: a keyed permutation of all n, another one for every n positions."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        turn, rest = turns(positions, self.n)
        return permute(rest, self.n, key(_FULL, self.seed, turn))


class Window:
    """Shards in keyed random order, samples shuffled among `width` consecutive shards of it.

    `bounds` (S + 1,) are the places where the selection's shards begin, and its length at last. In
    each turn another order of shards is cut into windows, and each window has a permutation of its
    own: at any time `width` shards are read from, and each is read to its end. Costs O(S) memory.
    """

    def __init__(self, bounds: np.ndarray, width: int, seed: int):
        bounds = np.asarray(bounds, np.int64)
        filled = np.flatnonzero(np.diff(bounds))  # a shard without selected samples takes no part
        self.begins, self.sizes = bounds[:-1][filled], np.diff(bounds)[filled]
        self.width, self.seed = width, seed
        self._order = lru_cache(4)(self._shards)

    def _shards(self, turn: int) -> tuple[Any, ...]:
        """Of a turn: its shards, and what leads from where they begin to their places; where its
        windows begin, their sizes and keys."""
        order = permute(np.arange(len(self.sizes)), len(self.sizes), key(_SHARDS, self.seed, turn))
        starts = np.append(0, np.cumsum(self.sizes[order]))
        edges = np.append(starts[: -1 : self.width], starts[-1])
        keys = key(_INSIDE, self.seed, turn, np.arange(len(edges) - 1))
        return Spans(starts), self.begins[order] - starts[:-1], edges[:-1], np.diff(edges), keys

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        turn, rest = turns(positions, int(self.sizes.sum()))
        found = np.empty(len(positions), np.int64)
        for one in np.unique(turn):
            here = np.flatnonzero(turn == one) if len(turn) > 1 else slice(None)
            found[here] = self._of_turn(int(one), rest[here])
        return found

    def _of_turn(self, turn: int, inside: np.ndarray) -> np.ndarray:
        shards, shifts, edges, sizes, keys = self._order(turn)
        window = np.searchsorted(edges, inside, "right") - 1
        first = edges.take(window)
        inside = permute(inside - first, sizes.take(window), keys.take(window))
        inside += first
        inside += shifts.take(shards(inside.astype(np.float64)))
        return inside


class Grouped:
    """Groups (classes, or shard sets) by their shares, and their members in keyed order.

    The sequence of groups is a schedule: group g has round(share * 2^18) slots of a cycle, the k-th
    of them at a uniform time within the k-th of equal spans of the cycle (stratified draws).
    So in any stretch the count of a group is its share to within about two draws, and how often it
    has come before position p is known from a table: no history, no state. Its k-th coming takes
    member k mod n_g of a keyed permutation of the group, a new one for each turn of n_g: every
    member comes once before any comes again, through all epochs.

    The selection's places are group 0's, then group 1's, ...: `sizes` (G,) members, `shares` (G,)
    in any unit; a group without a share, or without members, never comes.
    """

    def __init__(self, sizes: np.ndarray, shares: np.ndarray, seed: int):
        self.sizes, self.seed = np.asarray(sizes, np.int64), seed
        self.begins = np.cumsum(self.sizes) - self.sizes
        shares = np.where(self.sizes > 0, shares, 0.0)
        quota = np.round(shares / shares.sum() * _CYCLE).astype(np.int64)
        self.quota = np.where(shares > 0, np.maximum(quota, 1), 0)
        groups = np.repeat(np.arange(len(quota)), self.quota)
        nth = np.arange(len(groups)) - np.repeat(np.cumsum(self.quota) - self.quota, self.quota)
        jitter = uniform((_SCHEDULE, seed), np.arange(len(groups)), 1)[:, 0]
        order = np.argsort((nth + jitter) / self.quota[groups], kind="stable")
        self.group, self.nth = groups[order], nth[order]
        self.keys = key(_MEMBER, seed, np.arange(len(quota)))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        cycle, slot = turns(positions, len(self.group))
        group = self.group.take(slot)
        coming, sizes = self.quota.take(group), self.sizes.take(group)
        coming *= cycle
        coming += self.nth.take(slot)
        turn = coming // sizes
        coming -= turn * sizes
        keys = mix(self.keys.take(group) ^ turn.view(np.uint64))  # key(_MEMBER, seed, group, turn)
        found = permute(coming, sizes, keys)
        found += self.begins.take(group)
        return found


class Weighted:
    """Samples in proportion to their weights: systematic sampling from the inverse distribution.

    The `length` positions of an epoch are a keyed permutation of as many equal strata of [0, 1),
    and all strata of an epoch are hit at the same offset, which moves by the golden ratio from
    epoch to epoch. So a sample of weight w (all sum to 1) comes floor(length * w) or
    ceil(length * w) times in an epoch, and its count over epochs stays as near. The cumulative
    distribution takes 4.7 bytes a sample: float32 within 64 samples, float64 above.

    `weights` gives the selection's weights in pieces of any length, none negative.
    """

    def __init__(self, weights: Iterable[np.ndarray], n: int, length: int, seed: int):
        self.n, self.length, self.seed = n, length, seed
        self._start = uniform((_STRATUM, seed), np.zeros(1), 1)[0, 0]
        self._inner = np.zeros((-(-n // _FAN), _FAN), np.float32)
        flat, filled = self._inner.ravel(), 0
        for piece in weights:
            flat[filled : filled + len(piece)] = piece
            filled += len(piece)
        for first in range(0, len(self._inner), 4096):  # a piece at a time: no float64 copy of all
            rows = self._inner[first : first + 4096]
            rows[:] = np.cumsum(rows, axis=1, dtype=np.float64)
        self._heads = np.ascontiguousarray(self._inner[:, 15::16])
        self._tops = np.nextafter(self._inner[:, -1], np.float32(0))  # rounding leaves no block
        ends = np.cumsum(self._inner[:, -1], dtype=np.float64)
        self._blocks = Spans(np.concatenate([[0.0], ends]))

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._blocks.edges[-1])

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        epoch, rest = turns(positions, self.length)
        keys = key(_STRATUM, self.seed, epoch)
        offset = (self._start + epoch * _GOLDEN) % 1.0
        u = (permute(rest, self.length, keys) + offset) / self.length
        return self._inverse(np.minimum(u * self.total, np.nextafter(self.total, 0)))

    def _inverse(self, mass: np.ndarray) -> np.ndarray:
        """The first place whose cumulative weight is above `mass`."""
        block = self._blocks(mass)
        left = np.minimum(
            (mass - self._blocks.edges.take(block)).astype(np.float32), self._tops.take(block)
        )
        if count is not None:
            place = np.empty(len(mass), np.int64)
            count(self._inner, self._heads, block, left, place)
            return place
        place, step, flat = block * _FAN, _FAN // 2, self._inner.ravel()
        while step:
            place = place + step * (flat[place + step - 1] <= left)
            step //= 2
        return place
