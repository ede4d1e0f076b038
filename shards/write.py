"""A run of recordings into one tar, always the same bytes."""

import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, NamedTuple

import numpy as np

from shards.index import ROW, SPLITS, sync_folder
from shards.notes import Cell, Notes, save
from shards.process import Stages
from shards.recipe import Features, Heard, Recipe
from shards.recording import Recording, Reject
from shards.tar import BLOCK, BUFFER, Tar, entry

ODD = re.compile(r"[^A-Za-z0-9_-]+")  # in a key
STEM = 60  # characters of a file's name that its keys keep: a ustar name holds 100


@lru_cache(maxsize=8)
def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file, version 1.0; numpy's own changed its padding with time."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    text = repr(about).encode("latin1")
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def sample_key(path: str, recording: int, segment: int) -> str:
    """`a.v2 (é).wav` as `a_v2_e_-0000012-0003`: unique ASCII, without the dot that ends a key."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    stem = name[:dot] if 0 < dot < len(name) - 1 else name  # as pathlib has it, in a tenth of it
    if not stem.isascii():
        stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    stem = ODD.sub("_", stem).lstrip("-")[:STEM]
    return f"{stem or 'recording'}-{recording:07d}-{segment:04d}"


compact = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def sample_json(recording: Recording, label: int, start: float) -> bytes:
    """The JSON beside an array."""
    about = {
        "class": recording.label,
        "label": label,
        "recording": recording.path,
        "group": recording.group,
        "start": start,
        "fold": recording.fold,
        "split": recording.split,
    }
    return compact(about).encode()


def sample_bytes(shape: tuple[int, int]) -> int:
    """What one sample of (M, T) takes up in a tar, with a JSON of ordinary length."""
    header = npy_header(np.dtype("<f2"), shape)
    content = len(header) + 2 * shape[0] * shape[1]
    return BLOCK + -(-content // BLOCK) * BLOCK + 2 * BLOCK


@dataclass(frozen=True)
class Numbers:
    """The numbers that stand in the index for labels and folds, by their names as given."""

    labels: Mapping[str, int]  # into label_sets
    classes: Mapping[str, int]  # the first class of a label
    folds: Mapping[str, int]

    def cell(self, recording: Recording) -> Cell:
        """(split, fold, first class) of a recording; fold 0 if the set has none."""
        fold = self.folds[recording.fold] if recording.fold is not None else 0
        return SPLITS.index(recording.split or "train"), fold, self.classes[recording.label]


class Packed(NamedTuple):
    """A recording as its shard takes it."""

    block: PickleBuffer  # of the tar; lent, see shards.workers.ordered
    rows: bytes  # (S,) of ROW; offsets from the block's start, shard and recording 0
    line: str  # of recordings.jsonl
    cell: Cell
    sums: bytes  # (3, M) float64; arrays would take longer on their way
    grains: bytes  # (S, G, B) int8
    grid: tuple[int, ...]  # G, B


def pack(
    recording: Recording,
    place: int,
    features: Features,
    numbers: Numbers,
    unknown: Mapping[str, Any] | None = None,
) -> Packed:
    """All that a shard holds and notes of a recording; `unknown` replaces what its line says.

    Keys carry `place`, the recording's in the manifest, not the number in recordings.jsonl: a
    shard's bytes do not depend on what was rejected in another one.
    """
    split, fold, _ = cell = numbers.cell(recording)
    label = numbers.labels[recording.label]
    header = npy_header(features.values.dtype, features.values.shape[1:])
    rows, at = np.zeros(len(features.starts), ROW), BLOCK + len(header)
    pieces: list[bytes | memoryview] = []
    for segment, (value, start) in enumerate(zip(features.values, features.starts, strict=True)):
        key = sample_key(recording.path, place, segment)
        both = entry(f"{key}.npy", header, memoryview(value).cast("B"))
        both += entry(f"{key}.json", sample_json(recording, label, start))
        rows[segment] = (at, features.xxh3[segment], start, 0, 0, label, fold, split)
        pieces += both
        at += sum(map(len, both))
    line = json.dumps(recording_line(recording, features) | dict(unknown or {}))
    block, sums, grains = PickleBuffer(b"".join(pieces)), features.sums, features.grains
    rest = sums.tobytes(), grains.tobytes(), grains.shape[1:]
    return Packed(block, rows.tobytes(), line, cell, *rest)


def packing(recipe: Recipe, numbers: Numbers) -> Stages:
    """What becomes of a recording, with its place in the manifest; the work of a worker."""
    return Stages(partial(hear, recipe), partial(see, recipe), partial(packed, numbers))


def hear(recipe: Recipe, item: tuple[int, Recording]) -> tuple[int, Recording, Heard | Reject]:
    """A recording is decoded."""
    place, recording = item
    return place, recording, recipe.hear(recording.piece)


def see(
    recipe: Recipe, item: tuple[int, Recording, Heard | Reject]
) -> tuple[int, Recording, Features | Reject]:
    """A recording is transformed."""
    place, recording, heard = item
    return place, recording, heard if isinstance(heard, Reject) else recipe.see(heard)


def packed(numbers: Numbers, item: tuple[int, Recording, Features | Reject]) -> Packed | Reject:
    """A recording is written."""
    place, recording, features = item
    if isinstance(features, Reject):
        return rejection(recording, features.reason)
    return pack(recording, place, features, numbers)


def write_shard(file: Path, notes_file: Path, shard: int, work: Iterable[Packed | Reject]) -> Notes:
    """Write a tar beside its notes, then give it its name, so that only a whole shard has one."""
    aside = notes_file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
    try:
        with open(aside, "wb", buffering=BUFFER) as out:
            tar = Tar(out)
            notes = fill(tar, shard, work)
        file.unlink(missing_ok=True)  # an old one beside new notes would pass for theirs
        save(notes, notes_file)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(file.parent)
    return notes


def fill(tar: Tar, shard: int, work: Iterable[Packed | Reject]) -> Notes:
    """Write every sample of a shard, and note what the final files will need."""
    offsets: list[int] = []
    counts: list[int] = []
    lines: list[str] = []
    rejected: list[Reject] = []
    sums: dict[Cell, np.ndarray] = {}
    index, grains = bytearray(), bytearray()
    grid: tuple[int, ...] = ()
    for one in work:
        if isinstance(one, Reject):
            rejected.append(one)
            continue
        offsets.append(tar.size)
        counts.append(len(one.rows) // ROW.itemsize)
        lines.append(one.line)
        tar.put(one.block)
        index += one.rows
        grains += one.grains
        grid = one.grid
        sums[one.cell] = sums.get(one.cell, 0) + np.frombuffer(one.sums).reshape(3, -1)
    tar.finish()
    rows = np.frombuffer(index, ROW)
    rows["shard"], rows["recording"] = shard, np.repeat(np.arange(len(lines)), counts)
    rows["offset"] += np.repeat(np.array(offsets, np.uint64), counts)
    return Notes(
        rows=rows,
        lines=lines,
        rejected=rejected,
        sums=sums,
        size=tar.size,
        sha256=tar.digest.hexdigest(),
        grains=np.frombuffer(grains, np.int8).reshape(-1, *grid) if grains else None,
    )


def rejection(recording: Recording, reason: str) -> Reject:
    """A rejected recording with what is known of it."""
    if not recording.piece.is_whole:
        reason += f" (from {recording.start:.10g} s, {recording.seconds:g} s long)"
    return Reject(recording.path, reason, recording.label)


def recording_line(recording: Recording, features: Features) -> dict[str, Any]:
    """A line of recordings.jsonl; `start` and `end` are there where it is a piece of a file."""
    start, end = recording.start, recording.start + recording.seconds
    return {
        "path": recording.path,
        **({} if recording.piece.is_whole else {"start": start, "end": end}),
        "label": recording.label,
        "group": recording.group,
        "fold": recording.fold,
        "split": recording.split,
        **({"attack": recording.attack} if recording.attack else {}),
        "seconds": features.seconds,
        "sample_rate": recording.sample_rate,
        "channels": recording.channels,
        "segments": len(features.starts),
        "clipped": features.clipped,
        "dc": features.dc,
        **features.acoustics._asdict(),
        "xxh128": features.xxh128,
    }
