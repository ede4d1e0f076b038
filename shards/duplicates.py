"""Recordings that are copies of each other: the same audio, or re-encoded, louder, a bit later.

Shapes: `S` segments, `G` steps, `B` bands, `P` pairs, `N` segments that are compared.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any, NamedTuple

import numpy as np

from shards.durable import csv_bytes
from shards.fingerprint import LENGTH, agreement, busy_seconds, grain, vectors
from shards.index import ShardSet
from shards.notes import Notes
from shards.read import Reader

logger = logging.getLogger(__name__)

BLOCK, TILE, CHUNK = 1024, 8192, 64  # rows and columns of the search; pairs compared at once
READ = 64  # segments worked on at once: they stay in the processor's cache
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
    mel, cut, index, grains = shard_set.info["mel"], shard_set.info["segment"], shard_set.index, []
    if not (mel["hop_length"] and mel["sample_rate"]):  # converted, and nobody said
        logger.warning("%s: how long its frames are is unknown; exact copies only", shard_set)
        blank = np.zeros((len(index), 1, 1), np.int8)
        return Prints(index["recording"], index["xxh3"], blank, 0.0)
    frame = mel["hop_length"] / mel["sample_rate"]
    seconds = cut["seconds"] or frame * shard_set.shape[1]
    with Reader(shard_set) as reader:
        for first in range(0, len(index), READ):
            values = reader.read(np.arange(first, min(first + READ, len(index))))
            grains.append(grain(values.astype(np.float32), frame))
    return Prints(index["recording"], index["xxh3"], np.concatenate(grains), seconds)


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
    return Prints(index["recording"], index["xxh3"], np.concatenate(grains), seconds)


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
    rows = np.sort(first[busy[first] > 0])
    grains, needed = prints.grains[rows], AGREEMENT + STEEPNESS * np.maximum(0, ENOUGH - busy[rows])
    for pairs in likely_pairs(grains, prints.recording[rows], prints.seconds):
        a, b = pairs
        scores = agreement(grains, a, b, prints.seconds)
        for n in np.flatnonzero(scores >= np.maximum(needed[a], needed[b])).tolist():
            yield int(rows[a[n]]), int(rows[b[n]]), min(1.0, float(scores[n]))


def likely_pairs(
    grains: np.ndarray, owner: np.ndarray, seconds: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(P,), (P,) numbers of segments of different owners worth comparing, some at a time.

    All vectors are multiplied by all, tile by tile: 10^10 products of 512 numbers take a minute.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        points = [vectors(grains[n : n + READ], seconds) for n in range(0, len(grains), READ)]
    table = np.concatenate(points) if points else np.zeros((0, 1), np.float32)
    for begin in range(0, len(table), BLOCK):
        found = [
            near_rows(table[begin : begin + BLOCK], table[column : column + TILE], begin, column)
            for column in range(begin, len(table), TILE)
        ]
        a, b, likeness = (np.concatenate(x) for x in zip(*found, strict=True))
        keep = (a < b) & (owner[a] != owner[b])
        a, b = likest(a[keep], b[keep], likeness[keep])
        for n in range(0, len(a), CHUNK):
            yield a[n : n + CHUNK], b[n : n + CHUNK]


def near_rows(
    left: np.ndarray, right: np.ndarray, row: int, column: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of alike vectors, those of `left` counted from `row`, and how alike they are."""
    products = left @ right.T
    places = np.flatnonzero(products.ravel() >= LIKENESS * LENGTH**2)
    a, b = np.divmod(places, len(right))
    return a + row, b + column, products.ravel()[places]


def likest(a: np.ndarray, b: np.ndarray, likeness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `a` the few of `b` that are likest."""
    order = np.lexsort((b, -likeness, a))
    a, b = a[order], b[order]
    starts = np.flatnonzero(np.diff(a, prepend=-1))
    rank = np.arange(len(a)) - np.repeat(starts, np.diff(starts, append=len(a)))
    return a[rank < NEIGHBOURS], b[rank < NEIGHBOURS]


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
