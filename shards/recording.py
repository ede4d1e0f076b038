"""A recording: one audio file, or a piece of one, as everything after the manifest knows it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from shards.crew import Item
from shards.labels import nfc
from shards.workers import in_runs

RUN, MOST = 60.0, 64  # seconds of audio, and recordings, that a worker is given at once


class Recording(NamedTuple):
    """One audio file, or a piece of one: what its place, its table and its header say."""

    path: str  # below the audio folder, with "/", as the file system spells it
    label: str  # as given: a class, or several as in "dog;rain"
    group: str  # never on both sides of a split; `path` itself if no groups are named
    frames: int
    sample_rate: int  # Hz
    channels: int
    fold: str | None = None
    split: str | None = None  # "train", "val" or "test"
    attack: str | None = None  # how it was faked; None: it is genuine, or nobody says
    start: float = 0.0  # seconds in the file
    end: float | None = None  # seconds; None: to the end of the file

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate

    @property
    def piece(self) -> "Piece":
        """What of which file it is."""
        return Piece(self.path, self.start, self.end)


class Piece(NamedTuple):
    """A file from `start` to `end` (None: as far as it goes), in seconds."""

    path: str
    start: float = 0.0
    end: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole file."""
        return self.start == 0.0 and self.end is None


class Reject(NamedTuple):
    """A recording that cannot be used; path and reason are a line of rejected.csv."""

    path: str
    reason: str
    label: str = ""


def place(path: str, seed: int) -> tuple[bytes, str]:
    """A sort key: where the seed puts `path`, whatever other files there are."""
    text = f"{seed}\0{nfc(path)}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest(), path


def runs_of(
    items: Sequence[Item], of: Callable[[Item], Recording], workers: int
) -> Iterator[list[Item]]:
    """Runs of items, `of` a recording each, for one of the workers to do at once."""

    def size(item: Item) -> float:
        return max(of(item).seconds, RUN / MOST)

    return in_runs(items, RUN, size, sum(map(size, items)), workers)


@cache
def digested(also: tuple[str, ...]) -> tuple[list[str], Callable[[Recording], tuple[Any, ...]]]:
    """The fields that a digest tells, sorted, and how they are had: sets keep their digest where
    `also` names nothing more."""
    left_out = {"start", "end", "attack"}.difference(also)
    names = sorted(name for name in Recording._fields if name not in left_out)
    return names, attrgetter(*names)


def digest(recordings: Iterable[Recording], rejected: Iterable[Reject]) -> str:
    """SHA-256 over the recordings as understood, and over the names of the files left out."""
    total, encode = hashlib.sha256(), json.JSONEncoder().encode
    for recording in recordings:
        piece = () if recording.start == 0 and recording.end is None else ("start", "end")
        attack = () if recording.attack is None else ("attack",)
        names, values = digested(piece + attack)
        total.update(encode(dict(zip(names, values(recording), strict=True))).encode() + b"\n")
    for reject in rejected:
        total.update(json.dumps(reject.path).encode() + b"\n")
    return total.hexdigest()
