"""Old sets of .npy, .npz or .pkl files and the tables that tell of them."""

import csv
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import SPLITS
from shards.manifest import split_name
from shards.sources import unpickle

logger = logging.getLogger(__name__)

COLUMNS = {
    "path": ("filename", "file", "path", "file_name", "filepath", "name", "id"),
    "label": ("label", "class", "target", "category", "class_name"),
    "split": ("split", "subset", "part", "partition"),
    "fold": ("fold",),
}


@dataclass(frozen=True)
class Clip:
    """A spectrogram of an old set; `load` gives its array as it stood, or raises ValueError."""

    path: str
    label: str
    split: str | None
    fold: str | None
    load: Callable[[], np.ndarray]


def from_tables(old: Path, tables: Mapping[Path, str | None]) -> list[Clip]:
    """A clip for each row; `tables` say of which part a table is, where its name does."""
    arrays = sorted(old.rglob("*.np[yz]")) or sorted(old.rglob("*.pkl"))
    files = [f.relative_to(old).as_posix() for f in arrays]
    stems: dict[str, list[str]] = defaultdict(list)
    for file in files:
        stems[PurePosixPath(file).stem].append(file)
    clips = []
    for table, part in tables.items():
        for said in read_rows(table):
            path = locate(said["path"], stems, said.get("split") or part)
            split = said.get("split") or part or folder_split(path)
            clips.append(
                Clip(
                    path,
                    said["label"],
                    split_name(split) if split else None,
                    said.get("fold") or None,
                    partial(load_file, old / path),
                )
            )
    if loose := sorted(set(files).difference(clip.path for clip in clips)):
        s = "s" * (len(loose) > 1)
        logger.warning("%s: %d array%s that no row names, such as %s", old, len(loose), s, loose[0])
    return clips


def read_rows(table: Path) -> Iterator[dict[str, str]]:
    """What each row of a table says, by the keys of COLUMNS."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as text:
            rows = csv.DictReader(text)
            columns = find_columns(table, rows.fieldnames or ())
            for row in rows:
                yield {name: (row[column] or "").strip() for name, column in columns.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a csv file in UTF-8 ({error}); mend it") from None


def find_columns(table: Path, names: Iterable[str]) -> dict[str, str]:
    """Which column of a table says what."""
    there = {name.strip().lower(): name for name in names}
    found = {
        what: there[name]
        for what, known in COLUMNS.items()
        for name in known[::-1]
        if name in there
    }
    for what in ("path", "label"):
        if what not in found:
            raise UserError(
                f"{table}: no column for the {what}; call it {COLUMNS[what][0]!r} (there are: "
                f"{', '.join(there) or 'none'})"
            )
    return found


def locate(name: str, stems: dict[str, list[str]], part: str | None) -> str:
    """The array that a row means: `a.wav` is any `a.npy`, in the folder of its part if several."""
    wanted = PurePosixPath(name.replace("\\", "/"))
    found = stems.get(wanted.stem, []) or stems.get(wanted.name, [])
    for narrower in (
        [f for f in found if f == str(wanted)],
        [f for f in found if PurePosixPath(f).with_suffix("") == wanted.with_suffix("")],
        [f for f in found if part in PurePosixPath(f).parts],
        found,
    ):
        if len(narrower) == 1:
            return narrower[0]
    if found:
        raise UserError(f"{name!r} can be {found[0]!r} or {found[1]!r}; write its folder too")
    return str(wanted)  # missing: `load` will say so


def folder_split(path: str) -> str | None:
    """The part whose folder a file lies in."""
    return next((p for p in PurePosixPath(path).parts[:-1] if split_name(p) in SPLITS), None)


def load_file(file: Path) -> np.ndarray:
    """The array of a file, or the only one of two dimensions or more where it holds several."""
    try:
        content = read_file(file)
    except FileNotFoundError:
        raise ValueError("missing") from None
    except Exception as error:  # zipfile, zlib, struct and tokenize errors among them
        raise ValueError(f"not readable ({error})") from None
    if not isinstance(content, dict):
        return np.asarray(content)
    large = [name for name, array in content.items() if np.ndim(array) >= 2]
    if len(large) != 1:
        names = ", ".join(map(str, content))
        raise ValueError(f"{len(large)} spectrograms in one {file.suffix} ({names})")
    return np.asarray(content[large[0]])


def read_file(file: Path) -> Any:
    """What a .npy, .npz or .pkl holds: an array, or a dict of what it has by name."""
    if file.suffix == ".pkl":
        return unpickle.load(file)
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        return {name: content[name] for name in content.files}
