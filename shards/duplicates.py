"""Recordings that are copies of each other: the same audio, or re-encoded, louder, a bit later.

Shapes: `S` segments, `G` steps, `B` bands, `P` pairs, `N` segments that are compared.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any, NamedTuple

import numpy as np

from shards.durable import csv_bytes
from shards.fingerprint import LENGTH, agreement, busy_seconds, grain, vectors
from shards.index import ShardSet
from shards.notes import Notes
from shards.progress import Progress
from shards.read import Reader
from shards.workers import available

logger = logging.getLogger(__name__)

BLOCK, TILE = 256, 8192  # rows and columns of the search
READ = 64  # segments worked on at once: they stay in the processor's cache
SEARCHERS = 4  # threads, of 0.1 GB each
LIKENESS = 0.22  # cosine of vectors from where on grains are compared; chance spreads by 0.044
NEIGHBOURS = 32  # the likest that a segment is compared with
#: Where two segments agree more they are copies. Unrelated recordings of ESC-10 stay below 0.52;
#: short words said twice by one speaker reach 0.9 with 0.72 s of grain, where 0.97 is asked for.
AGREEMENT, ENOUGH, STEEPNESS = 0.52, 2.0, 0.35  # seconds; more agreement per second that is missing
WARNED_UP_TO, SHOWN = 100_000, 5  # segments that a build looks at by itself; pairs that it names


class Pair(NamedTuple):
    """Two recordings that are copies, by their numbers, the lower one first."""

    first: int
    second: int
    agreement: float  # 1 at most
    is_exact: bool  # every stored segment is the same, byte for byte


@dataclass(frozen=True)
class Prints:
    """What is compared: the segments of recordings, one recording after the other."""

    recording: np.ndarray  # (S,) int
    xxh3: np.ndarray  # (S,) uint64, of the stored bytes
    grains: np.ndarray  # (S, G, B) int8
    seconds: float  # of a segment


def read_prints(shard_set: ShardSet) -> Prints:
    """The fingerprints of a stored set, from its spectrograms."""
    mel, cut, index = shard_set.info["mel"], shard_set.info["segment"], shard_set.index
    if not (mel["hop_length"] and mel["sample_rate"]):  # converted, and nobody said
        logger.warning("%s: how long its frames are is unknown; exact copies only", shard_set)
        blank = np.zeros((len(index), 1, 1), np.int8)
        return Prints(index["recording"], index["xxh3"], blank, 0.0)
    frame = mel["hop_length"] / mel["sample_rate"]
    seconds = cut["seconds"] or frame * shard_set.shape[1]
    grains = np.zeros((0, 1, 1), np.int8)
    with Reader(shard_set) as reader, Progress("read", len(index), unit="segments") as progress:
        for first in range(0, len(index), READ):
            values = reader.read(np.arange(first, min(first + READ, len(index))))
            some = grain(values.astype(np.float32), frame)
            grains = grains if first else np.empty((len(index), *some.shape[1:]), np.int8)
            grains[first : first + READ] = some
            progress.update(len(values) * seconds, len(values))
    return Prints(index["recording"], index["xxh3"], grains, seconds)


def noted_prints(notes: Sequence[Notes], seconds: float) -> Prints | None:
    """The fingerprints of a set of which all shards were just made."""
    rows, first = [one.rows.copy() for one in notes], 0
    for part, one in zip(rows, notes, strict=True):
        part["recording"] += first
        first += len(one.lines)
    grains = [one.grains for one in notes if one.grains is not None]
    if not grains:
        return None
    index = np.concatenate(rows)
    joined = np.concatenate(grains) if len(grains) > 1 else grains[0]  # which may be large
    return Prints(index["recording"], index["xxh3"], joined, seconds)


def find_copies(prints: Prints) -> list[Pair]:
    """The pairs of recordings that are copies, exact ones first.

    Exact copies give the same stored bytes: the same audio at the set's sample rate, whatever the
    container, the bit depth above 16 or the name. Of many that are equal each is paired with the
    first. Near ones agree in a segment or more; recordings that share an exact segment are near.
    """
    exact = dict(exact_copies(prints))
    owner = prints.recording
    best: dict[tuple[int, int], float] = {}
    for i, j, score in near_segments(prints):
        a, b = (exact.get(int(n), int(n)) for n in (owner[i], owner[j]))
        if a != b:
            key = min(a, b), max(a, b)
            best[key] = max(best.get(key, 0.0), score)
    near = [Pair(a, b, score, False) for (a, b), score in best.items()]
    near.sort(key=lambda pair: (-pair.agreement, pair))
    return [*(Pair(a, b, 1.0, True) for b, a in sorted(exact.items())), *near]


def exact_copies(prints: Prints) -> Iterator[tuple[int, int]]:
    """(copy, the first one like it) for recordings of the same segments."""
    seen: dict[bytes, int] = {}
    starts = np.flatnonzero(np.diff(prints.recording, prepend=-1))
    for xxh3, number in zip(
        np.split(prints.xxh3, starts[1:]), prints.recording[starts].tolist(), strict=True
    ):
        first = seen.setdefault(xxh3.tobytes(), number)
        if first != number:
            yield number, first


def near_segments(prints: Prints) -> Iterator[tuple[int, int, float]]:
    """Two segments of different recordings and how well they agree, where it is well enough."""
    busy = busy_seconds(prints.grains, prints.seconds)
    _, first, back = np.unique(prints.xxh3, return_index=True, return_inverse=True)
    for i, j in zip(first[back].tolist(), range(len(back)), strict=True):  # the same bytes
        if i != j and busy[j] and prints.recording[i] != prints.recording[j]:
            yield i, j, 1.0
    needed = AGREEMENT + STEEPNESS * np.maximum(0, ENOUGH - busy)
    rows = np.sort(first[(busy[first] > 0) & (needed[first] <= 1)])  # others can agree with none
    for a, b in likely_pairs(prints, rows):
        scores = agreement(prints.grains, a, b, prints.seconds)
        for n in np.flatnonzero(scores >= np.maximum(needed[a], needed[b])).tolist():
            yield int(a[n]), int(b[n]), min(1.0, float(scores[n]))


def likely_pairs(prints: Prints, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(P,), (P,) segments among `rows`, of different recordings, worth comparing; some at a time.

    All vectors are multiplied by all, tile by tile. An index by random planes (Charikar, 2002)
    would spare little: some copies that were clipped or begin earlier are hardly more alike than
    LIKENESS, and to find these it has to look at most of the others.
    """
    from threadpoolctl import threadpool_limits

    n, table = len(rows), np.zeros((0, 1), np.float32)
    some = [rows[k : k + READ] for k in range(0, n, READ)]
    owner, blocks = prints.recording[rows], range(0, n, BLOCK)
    with threadpool_limits(1), ThreadPoolExecutor(min(available(), SEARCHERS)) as pool:
        points = pool.map(lambda part: vectors(prints.grains[part], prints.seconds), some)
        for k, point in enumerate(points):
            table = table if k else np.empty((n, point.shape[1]), np.float32)
            table[k * READ : k * READ + READ] = point
        found = pool.map(partial(neighbours, table, owner), blocks)
        with Progress("search", n * (n + 1) // 2, unit="pairs") as progress:
            for first, (a, b) in zip(blocks, found, strict=True):
                yield rows[a], rows[b]
                end = min(first + BLOCK, n)
                progress.update(count=sum(range(n - end + 1, n - first + 1)))


def neighbours(table: np.ndarray, owner: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of the vectors from `first` to `first + BLOCK` with the likest behind them.

    Shapes: table (N, D); owner (N,), ascending; returned (P,), (P,) rows of the table.
    """
    left = table[first : first + BLOCK]
    mine, least = owner[first : first + BLOCK, None], np.full(len(left), LIKENESS * LENGTH**2, "f4")
    a, b, likeness = (np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32))
    for column in range(first, len(table), TILE):
        products = left @ table[column : column + TILE].T
        if owner[column] <= mine[-1]:
            products[mine >= owner[column : column + TILE]] = 0  # of one recording, or told before
        is_like = products >= least[:, None]
        if np.count_nonzero(is_like) > 4 * NEIGHBOURS * len(left):  # a set of like sounds
            likest = np.partition(products, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]
            is_like &= products >= likest[:, None]
        row, other = np.nonzero(is_like)
        found = (a, row), (b, other + column), (likeness, products[row, other])
        a, b, likeness = (np.concatenate(x) for x in found)
        order = np.lexsort((b, np.negative(likeness), a))
        a, b, likeness = a[order], b[order], likeness[order]
        rank = np.arange(len(a)) - np.searchsorted(a, a)
        least[a[rank == NEIGHBOURS - 1]] = likeness[rank == NEIGHBOURS - 1]
        a, b, likeness = (x[rank < NEIGHBOURS] for x in (a, b, likeness))
    return a + first, b


class Finding(NamedTuple):
    """A pair with its lines of recordings.jsonl."""

    pair: Pair
    first: Mapping[str, Any]
    second: Mapping[str, Any]

    @property
    def leaks(self) -> bool:
        """Whether the copies stand in different folds or parts: the score will flatter."""
        return any(self.first[name] != self.second[name] for name in ("fold", "split"))


def find(shard_set: ShardSet, pairs: Sequence[Pair] | None = None) -> list[Finding]:
    """The copies in a stored set, those across folds or parts first; `pairs` if they are known."""
    if pairs is None:
        pairs = find_copies(read_prints(shard_set))
    if not pairs:
        return []
    lines = shard_set.lines_of(n for pair in pairs for n in pair[:2])
    found = [Finding(pair, lines[pair.first], lines[pair.second]) for pair in pairs]
    return sorted(found, key=lambda finding: not finding.leaks)


def summary(found: Sequence[Finding]) -> str:
    """How many there are, in one line."""
    exact, leaks = sum(x.pair.is_exact for x in found), sum(x.leaks for x in found)
    other = sum(x.first["label"] != x.second["label"] for x in found)
    text = f"duplicates  {exact} exact and {len(found) - exact} near pairs, {leaks} across folds "
    return text + "or parts" + (f", {other} with different labels" if other else "")


def warn(shard_set: ShardSet, pairs: Sequence[Pair] | None = None) -> list[str]:
    """Lines for the end of a build: whether copies stand on two sides, and what to do then.

    `pairs` are the copies, if they were looked for already.
    """
    command = f"python -m shards duplicates {quote(str(shard_set))}"
    if len(shard_set.index) > WARNED_UP_TO:
        return [f"duplicates  not looked for; {command} does"]
    found = find(shard_set, pairs)
    if not found:
        return []
    leaks = [x for x in found if x.leaks]
    hint = "scores will flatter; --on_duplicate=group (or drop) mends it" if leaks else "harmless"
    shown = [f"  {line}" for line in table(leaks[:SHOWN])]
    more = [f"  ... {command}"] * (len(leaks) > SHOWN)
    return [f"{summary(found)}: {hint}", *shown, *more]


def table(found: Iterable[Finding]) -> list[str]:
    """A line a pair: its kind, where its two recordings stand, which they are."""
    return [
        f"{'exact' if x.pair.is_exact else f'near {x.pair.agreement:.2f}':<10}"
        f"{where(x.first)}: {name(x.first)}   {where(x.second)}: {name(x.second)}"
        for x in found
    ]


def where(line: Mapping[str, Any]) -> str:
    """`fold 2, train`, as far as there are folds."""
    return (f"fold {line['fold']}, " if line["fold"] is not None else "") + line["split"]


def name(line: Mapping[str, Any]) -> str:
    """The path of a recording, with its seconds if it is a piece of a file."""
    piece = f" ({line['start']:g} to {line['end']:g} s)" if "start" in line else ""
    return line["path"] + piece


def as_csv(found: Iterable[Finding]) -> bytes:
    """The pairs as a table for other programs."""
    head = ["kind", "agreement", "leaks", *(f"{c}_{n}" for n in (1, 2) for c in COLUMNS)]
    rows = []
    for x in found:
        kind = "exact" if x.pair.is_exact else "near"
        sides = [name(s) if c == "path" else s[c] for s in x[1:] for c in COLUMNS]
        rows.append([kind, f"{x.pair.agreement:.3f}", int(x.leaks), *sides])
    return csv_bytes([head, *rows])


COLUMNS = ("path", "label", "group", "fold", "split")
