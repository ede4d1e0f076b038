"""The shard set on disk: dataset.json, index.npy, stats.npy, recordings.jsonl.

Shapes: `N` samples, `M` mel bands, `T` frames, `F` folds (at least 1), `K` classes.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError

FORMAT = 1
SPLITS = ("train", "val", "test")

#: One row a sample. `offset` is where the array's bytes start in the tar, behind its .npy header;
#: `xxh3` is the XXH3-64 of these bytes; `start` is in seconds; `recording` is a line of
#: recordings.jsonl; `split` numbers SPLITS; `fold` numbers dataset.json's "folds" (0 if none);
#: `label` numbers its "classes", or its "label_sets" where samples have several classes.
ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("xxh3", "<u8"),
        ("start", "<f8"),
        ("shard", "<u4"),
        ("recording", "<u4"),
        ("label", "<i4"),
        ("fold", "<i2"),
        ("split", "u1"),
    ]
)

FILES = ("index.npy", "stats.npy", "recordings.jsonl", "rejected.csv", "balance.json")
BESIDE = ".build"  # inside a set, until it is whole: see workshop.py
READY = Path(BESIDE, "ready")  # all its new files at once, on the way to their places
SEAL = b'"sha256": "'  # the last key of dataset.json: the SHA-256 of the file with 64 zeros here


def shard_name(number: int) -> str:
    """The file name of shard `number`: `samples-000000.tar`."""
    return f"samples-{number:06d}.tar"


def display_name(label: str) -> str:
    """A label as people read it: `001 - Dog bark` is `Dog bark`."""
    return re.sub(r"^\d+\s*-\s*(?=\S)", "", label)


def display_names(labels: Sequence[str]) -> list[str]:
    """Labels as people read them, or as they are if two would read the same."""
    names = [display_name(label) for label in labels]
    return names if len(set(names)) == len(names) else list(labels)


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

    def shard_file(self, shard: int) -> Path:
        """Where the tar with this number can be opened."""
        return self.path / self.info["shards"][shard]["name"]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Say that these tars come next: the kernel begins to read them into its cache."""
        for shard in shards:
            with suppress(OSError), open(self.shard_file(shard), "rb") as tar:
                os.posix_fadvise(tar.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    @cached_property
    def index(self) -> np.ndarray:
        """(N,) structured array of ROW, opened and not read."""
        return np.load(current(self.path, "index.npy"), mmap_mode="r", allow_pickle=False)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of the index for these sample numbers. Shape: (P,) integers -> (P,) of ROW."""
        return self.index[numbers]

    @cached_property
    def stats(self) -> np.ndarray:
        """Sums for normalisation; see `stats_shape`."""
        return np.load(current(self.path, "stats.npy"), allow_pickle=False)

    def recordings(self) -> Iterator[dict[str, Any]]:
        """The lines of recordings.jsonl: path, label, group, fold, split, seconds, ..."""
        with open(current(self.path, "recordings.jsonl"), encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def open_set(path: str | os.PathLike[str]) -> ShardSet:
    """Open a shard set and check that its parts are there, at their sizes.

    Raises:
        UserError: no shard set, an unfinished or newer one, a shard missing or of another length.
    """
    path = Path(path)
    info = read_info(path)
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
    if file.stat().st_size != size:
        found = file.stat().st_size
        raise UserError(
            f"{file}: {found} bytes, dataset.json says {size}; copy it again or rebuild"
        )


def read_info(path: Path) -> dict[str, Any]:
    """dataset.json of the shard set at `path`.

    Raises:
        UserError: there is none, it is damaged, or a newer wavefold wrote it.
    """
    try:
        info = json.loads(current(path, "dataset.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = (path / BESIDE).exists()
        what = "an unfinished build; start the same build again" if unfinished else "no shard set"
        hint = "" if unfinished else "; make one with `python -m shards build AUDIO OUT`"
        raise UserError(f"{path}: {what}{hint}") from None
    except ValueError as error:
        raise UserError(f"{path}/dataset.json: not valid JSON ({error}); rebuild the set") from None
    if info.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {info.get('format')}, this wavefold reads format {FORMAT}; "
            "install the version that wrote it or rebuild the set"
        )
    return info


def write_atomic(file: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data` under its name whole or not at all: aside, fsync, rename, fsync the folder."""
    aside = file.with_name(
        f".{file.name}.{secrets.token_hex(4)}.tmp"
    )  # pids repeat across machines
    try:
        with open(aside, "wb") as out:
            out.writelines([data] if isinstance(data, bytes) else data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(info: Mapping[str, Any]) -> bytes:
    """dataset.json's bytes: `info` for people, in the order given, and its own checksum at last."""
    text = json.dumps({**info, "sha256": "0" * 64}, indent=2).encode() + b"\n"
    head, mark, tail = text.rpartition(SEAL)
    return head + mark + hashlib.sha256(text).hexdigest().encode() + tail[64:]


def is_sealed(data: bytes) -> bool:
    """Whether dataset.json's bytes are those that `seal` made."""
    head, mark, tail = data.rpartition(SEAL)
    blank = head + mark + b"0" * 64 + tail[64:]
    return tail[:64] == hashlib.sha256(blank).hexdigest().encode()


def file_entry(file: Path) -> dict[str, Any]:
    """What dataset.json notes of a file: its bytes and its SHA-256."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
