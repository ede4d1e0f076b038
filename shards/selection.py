"""Which samples take part, in two bytes each at most.

The places of a selection are 0 .. len-1; what stands there are sample numbers, rows of an index.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 16  # sample numbers of one chunk differ in their lower 16 bits only


@dataclass(frozen=True, eq=False)
class Selection:
    """Groups of sample numbers, one after the other, each sorted; mostly there is one group.

    A number is kept by its lower 16 bits; the upper ones follow from a short list of pieces, each
    of one group in one chunk. A piece without gaps keeps nothing.
    """

    ends: np.ndarray  #: (pieces,) int64: the place behind each piece
    bases: np.ndarray  #: (pieces,) int64: the first number of its chunk
    shifts: np.ndarray  #: (pieces,) int64: what leads from its places to `low`
    low: np.ndarray  #: uint16: the numbers' lower bits; the first 2^16 are 0, 1, 2, ...
    sizes: np.ndarray  #: (G,) int64: the samples of each group

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __getitem__(self, places: np.ndarray | slice) -> np.ndarray:
        """The sample numbers at `places`. Shape: (P,) -> (P,) int64."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        piece = np.searchsorted(self.ends, places, "right")
        return self.bases[piece] + self.low[places + self.shifts[piece]]

    def pieces(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """The sample numbers in their order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def ranks(self, numbers: Sequence[int]) -> np.ndarray:
        """How many of a single group's numbers are below each of `numbers` (S,). Shape: (S,)."""
        begins = np.append(0, self.ends)
        found = []
        for number in numbers:
            piece = int(np.searchsorted(self.bases, number - CHUNK, "right"))
            rank = begins[piece]  # all before this piece are below
            if piece < len(self.bases) and number > self.bases[piece]:
                first, last = begins[piece : piece + 2] + self.shifts[piece]
                wanted = np.uint16(number - self.bases[piece])
                rank += np.searchsorted(self.low[first:last], wanted)
            found.append(rank)
        return np.array(found, np.int64)


def deal(
    n: int, group_of: Callable[[int, int], np.ndarray], parts: Sequence[int]
) -> list[Selection]:
    """Deal 0 .. n-1 out to parts and groups in one pass, a chunk at a time.

    `group_of(first, stop)` gives the group of each of these numbers, counted through all parts, or
    -1 for none, shape (stop - first,); `parts` says how many groups each part has.
    """
    low = np.empty(CHUNK + n, np.uint16)  # pages are taken as they are filled
    low[:CHUNK] = np.arange(CHUNK)
    filled, found = CHUNK, [np.zeros((4, 0), np.int64)]
    kind = np.int16 if sum(parts) < 1 << 15 else np.int32  # 16 bits are sorted much faster
    for base in range(0, n, CHUNK):
        groups = group_of(base, min(base + CHUNK, n)).astype(kind)
        lows = np.argsort(groups, kind="stable").astype(np.uint16)
        counts = np.bincount(groups + 1, minlength=sum(parts) + 1)
        begins = np.cumsum(counts) - counts
        some = np.flatnonzero(counts[1:]) + 1
        size = counts[some]
        first = lows[begins[some]].astype(np.int64)
        last = lows[begins[some] + size - 1].astype(np.int64)
        gaps = last - first >= size
        keeps = np.isin(np.arange(len(counts)), some[gaps])
        kept = lows[np.repeat(keeps, counts)]
        low[filled : filled + len(kept)] = kept
        begin = np.where(gaps, filled + np.cumsum(size * gaps) - size * gaps, first)
        found.append(np.stack([some - 1, np.full(len(some), base), size, begin]))
        filled += len(kept)
    low.resize(filled, refcheck=False)
    pieces = np.concatenate(found, axis=1)
    pieces = pieces[:, np.argsort(pieces[0], kind="stable")]  # groups in order, each sorted
    selections, before = [], 0
    for width in parts:
        mine = (pieces[0] >= before) & (pieces[0] < before + width)
        group, bases, size, begin = pieces[:, mine]
        ends, sizes = np.cumsum(size), np.zeros(width, np.int64)
        np.add.at(sizes, group - before, size)
        selections.append(Selection(ends, bases, begin - (ends - size), low, sizes))
        before += width
    return selections
