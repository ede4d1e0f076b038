"""The shard set on disk: dataset.json, index.npy, stats.npy, recordings.jsonl.

Shapes: `N` samples, `M` mel bands, `T` frames, `F` folds (at least 1), `K` classes.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from shards.ahead import into_memory
from shards.durable import file_entry as file_entry
from shards.durable import sha256 as sha256
from shards.durable import sync_folder as sync_folder
from shards.durable import write_atomic as write_atomic
from shards.errors import ShardError, UserError
from shards.labels import display_names
from shards.maps import take
from shards.remote import is_url

FORMAT = 1
SPLITS = ("train", "val", "test")

#: One row a sample. `offset` is where the array's bytes start in the tar, behind its .npy header;
#: `xxh3` is the XXH3-64 of these bytes; `start` is in seconds; `recording` is a line of
#: recordings.jsonl; `split` numbers SPLITS; `fold` numbers dataset.json's "folds" (0 if none);
#: `label` numbers its "classes", or its "label_sets" where samples have several classes.
ROW = np.dtype([
    ("offset", "<u8"), ("xxh3", "<u8"), ("start", "<f8"), ("shard", "<u4"), ("recording", "<u4"),
    ("label", "<i4"), ("fold", "<i2"), ("split", "u1"),
])  # fmt: skip

FILES = ("index.npy", "stats.npy", "recordings.jsonl", "rejected.csv", "balance.json")
BESIDE = ".build"  # inside a set, until it is whole: see workshop.py
READY = Path(BESIDE, "ready")  # all its new files at once, on the way to their places


def shard_name(number: int) -> str:
    """The file name of shard `number`: `samples-000000.tar`."""
    return f"samples-{number:06d}.tar"


def stats_shape(folds: int, classes: int, n_mels: int) -> tuple[int, ...]:
    """stats.npy: (split, fold, class, [count, sum, sum of squares], mel band), float64, in dB.

    A sample of several classes counts under the first of them alone, so that sums over classes
    are sums over samples.
    """
    return (len(SPLITS), max(1, folds), classes, 3, n_mels)


@dataclass(frozen=True)
class ShardSet:
    """An open shard set. `info` is dataset.json as it stands; the arrays are memory-mapped."""

    path: Path
    info: Mapping[str, Any]

    def __str__(self) -> str:
        """Where it is, as the user would say."""
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name

    @property
    def shape(self) -> tuple[int, int]:
        """(M, T) of every sample."""
        n_mels, frames = self.info["shape"]
        return n_mels, frames

    @property
    def class_names(self) -> list[str]:
        """Class names as reports show them, in the order of the label numbers."""
        return display_names(self.info["classes"])

    @property
    def is_multi_label(self) -> bool:
        """Whether samples may have several classes."""
        return "label_sets" in self.info

    @property
    def label_sets(self) -> list[list[int]]:
        """The class numbers that each label number stands for; `[[0], [1], ...]` if one each."""
        return self.info.get("label_sets") or [[n] for n in range(len(self.info["classes"]))]

    @property
    def label_names(self) -> list[str]:
        """What each label number stands for, as reports show it."""
        names = self.class_names
        return ["; ".join(names[n] for n in some) for some in self.label_sets]

    @cached_property
    def label_table(self) -> np.ndarray:
        """(label numbers, K) bool: which classes each label number stands for."""
        table = np.zeros((len(self.label_sets), len(self.info["classes"])), bool)
        for row, some in zip(table, self.label_sets, strict=True):
            row[some] = True
        return table

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        """(P, K) bool: which classes each of the samples with these numbers has."""
        return self.label_table[self.rows(numbers)["label"]]

    @property
    def folds(self) -> list[str]:
        """The names of the folds, `["1", "2", ...]`; empty if the set has none."""
        return list(self.info["folds"])

    @property
    def shard_paths(self) -> list[Path]:
        """The tars, in the order of their numbers."""
        return [self.path / shard["name"] for shard in self.info["shards"]]

    @cached_property
    def shard_ends(self) -> list[int]:
        """0, and how many samples there are up to the end of each shard."""
        return [0, *accumulate(shard["samples"] for shard in self.info["shards"])]

    @property
    def is_remote(self) -> bool:
        """Whether a shard may have to be fetched first."""
        return False

    def cache_figures(self) -> dict[str, int]:
        """How often a file was in the cache, and how often not; nothing of a set on a disk."""
        return {}

    @property
    def open_at_most(self) -> int:
        """How many shards a reader may hold open."""
        return 256

    def file(self, name: str) -> Path:
        """One of the files beside the tars, on this machine's disk."""
        return current(self.path, name)

    def shard_place(self, shard: int) -> str:
        """Where a shard is, as the user would say."""
        return f"{self}/{self.info['shards'][shard]['name']}"

    def shard_file(self, shard: int) -> Path:
        """The tar of a shard, on this machine's disk.

        Raises:
            ShardError: it is elsewhere and cannot be had.
        """
        return self.path / self.info["shards"][shard]["name"]

    def open_shard(self, shard: int) -> int:
        """A descriptor of a shard, which stays readable until it is closed."""
        return os.open(self.shard_file(shard), os.O_RDONLY)

    def bring(self, shard: int) -> Iterator[None]:
        """Bring a shard into memory, or onto this machine, some of it each time."""
        with suppress(OSError), open(self.open_shard(shard), "rb") as tar:  # who reads will say
            yield from into_memory(tar.fileno())

    @cached_property
    def index(self) -> np.ndarray:
        """(N,) structured array of ROW, opened and not read."""
        return np.asarray(np.load(self.file("index.npy"), mmap_mode="r", allow_pickle=False))

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, numbers: np.ndarray | slice) -> np.ndarray:
        """The rows of the index for these sample numbers; a ShardError if it was cut short since it
        was opened. Shape: (P,) integers -> (P,) of ROW."""
        if isinstance(numbers, slice):
            return self.index[numbers]
        rows = np.empty(len(numbers), ROW)
        if not take(self.index, numbers, rows):
            raise ShardError(f"{self.file('index.npy')}: cut short while it was in use")
        return rows

    @cached_property
    def stats(self) -> np.ndarray:
        """Sums for normalisation; see `stats_shape`."""
        return np.load(self.file("stats.npy"), allow_pickle=False)

    def recordings(self) -> Iterator[dict[str, Any]]:
        """The lines of recordings.jsonl: path, label, group, fold, split, seconds, ..."""
        with open(self.file("recordings.jsonl"), encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def lines_of(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The lines of these recordings by their numbers, ascending."""
        wanted = set(numbers)
        with open(self.file("recordings.jsonl"), encoding="utf-8") as lines:
            found = {n: line for n, line in enumerate(lines) if n in wanted}
        told = json.loads(f"[{','.join(found.values())}]")  # at once: a call a line takes as long
        return dict(zip(found, told, strict=True))


def open_set(path: str | os.PathLike[str], cache_gb: float | None = None) -> ShardSet:
    """Open a shard set and check that its parts are there, at their sizes.

    `path` may be an address such as s3://bucket/set: its shards are fetched as they are needed, and
    kept in a cache of `cache_gb` (50) that all processes of a machine share.

    Raises:
        UserError: no shard set, an unfinished or newer one, a shard missing or of another length,
            or an address that cannot be read.
    """
    if is_url(path):
        from shards.remote_set import open_remote

        return open_remote(str(path), cache_gb)
    path = Path(path)
    info = read_info(path)
    if lacking := {"shards", "files"} - info.keys():
        raise UserError(f"{path}/dataset.json: has no {min(lacking)!r}; copy it again or rebuild")
    for shard in info["shards"]:
        check_size(path / shard["name"], shard["bytes"])
    for name, entry in info["files"].items():
        check_size(current(path, name), entry["bytes"])
    return ShardSet(path, info)


def current(path: Path, name: str) -> Path:
    """Where a file of the set at `path` stands.

    READY appears by one rename, and from then on its files count. So a build killed while it moves
    them leaves the old set or the new one, and never a mixture.
    """
    aside = path / READY / name
    return aside if aside.exists() else path / name


def check_size(file: Path, size: int) -> None:
    """Raise a UserError that names `file` unless it is there and has `size` bytes."""
    if not file.is_file():
        raise UserError(f"{file}: missing, dataset.json lists it; copy it again or rebuild the set")
    if (found := file.stat().st_size) != size:
        raise UserError(f"{file}: {found} bytes, dataset.json says {size}; copy it or rebuild")


def read_info(path: Path) -> dict[str, Any]:
    """dataset.json of the shard set at `path`.

    Raises:
        UserError: there is none, it is damaged, or a newer wavefold wrote it.
    """
    try:
        return parse_info(current(path, "dataset.json").read_bytes(), path)
    except (FileNotFoundError, NotADirectoryError):
        unfinished = (path / BESIDE).exists()
        what = "an unfinished build; start the same build again" if unfinished else "no shard set"
        hint = "" if unfinished else "; make one with `python -m shards build AUDIO OUT`"
        raise UserError(f"{path}: {what}{hint}") from None


def parse_info(data: bytes, path: object) -> dict[str, Any]:
    """dataset.json as a dict; a UserError about the set at `path` if it cannot be read."""
    try:
        info: dict[str, Any] = json.loads(data)
    except ValueError as error:
        what = "a web page" if b"<html" in data else f"not valid JSON ({error})"
        raise UserError(f"{path}/dataset.json: {what}; name a set or rebuild it") from None
    form = info.get("format") if isinstance(info, dict) else None  # of another program
    if form != FORMAT:
        raise UserError(
            f"{path}: format {form}, this wavefold reads format {FORMAT}; "
            "install the version that wrote it or rebuild the set"
        )
    return info
