"""Which recordings there are: a folder a class, or the rows of a table; and what names say."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from shards.audio import AudioError
from shards.errors import UserError
from shards.folder import SUFFIXES, headers, is_audio, list_folder
from shards.labels import classes_of, names, nfc
from shards.recording import Piece, Recording, Reject, place
from shards.root import Root, Unfetched
from shards.table import Table, resolve

SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "test"}
LATEST = 1e9  # seconds: what is asked of a file has to fit into whole numbers
NO_ATTACK = ("", "-")  # as protocols write it of what is genuine, or its label once more
GAPS = ("group_from", "attack_from")  # columns that need not be filled in


class Scan(NamedTuple):
    """What there is; `passed_by` are the files of a folder that are no audio in a class folder."""

    recordings: list[Recording]
    rejected: list[Reject]
    passed_by: list[str]


def scan(
    audio: Root,
    table: Table | None = None,
    *,
    strict: bool = False,
    seed: int = 0,
    file_timeout: float = 0.0,
    label_from: str | None = None,
    group_from: str | None = None,
    fold_from: str | None = None,
    split_from: str | None = None,
    attack_from: str | None = None,
) -> Scan:
    """Read the names and headers below `audio`; recordings in the order of the seed, classes mixed.

    The recordings are the files below `audio`, by default with their first folder as label, or the
    rows of `table`, whose paths are relative to `audio`. A `*_from` is a column of the table, or
    else a pattern, searched in the file name, or in the path below `audio` if the pattern has a
    `/`; its value is group 1, or the whole match if it has no group. Hidden files are skipped.
    With `strict` nothing that the table names may be missing. A file whose header takes longer than
    `file_timeout` seconds, or kills its reader, is rejected; 0 is no limit.

    Raises:
        UserError: no folder, no audio, a single class, a pattern that is no regular expression or
            that a file does not match, a column with gaps, a row that contradicts another.
    """
    flags = {"label": label_from, "group": group_from, "fold": fold_from, "split": split_from,
             "attack": attack_from}  # fmt: skip
    missing: dict[int, str] = {}
    passed_by: list[str] = []
    if table is None:
        table = {}
        paths, passed_by = list_folder(audio, loose=label_from is not None)
        pieces = [Piece(path) for path in paths]
    else:
        paths, missing = find_files(audio, table["path"], strict)
        pieces = pieces_of(table, paths)
        if label_from is None:
            raise UserError("no column 'label' in the table; name one by --label_from, or a regex")
    columns = {
        name: list(map(nfc, column(f"{name}_from", flag, table, paths)))
        for name, flag in flags.items()
        if flag is not None
    }
    columns.setdefault("label", [nfc(path.partition("/")[0]) for path in paths])
    check_classes(audio, columns["label"], passed_by)
    if "split" in columns:
        columns["split"] = list(map(split_name, columns["split"]))

    nothing: list[Any] = [None] * len(pieces)
    said = zip(*(columns.get(name, nothing) for name in flags), strict=True)
    recordings, rejected = [], []
    for piece, header, (label, group, fold, split, attack) in zip(
        pieces, headers(audio, pieces, missing, file_timeout), said, strict=True
    ):
        if strict and isinstance(header, Unfetched):
            raise UserError(f"--strict: {piece.path!r} {header}; mend the table or the connection")
        if isinstance(header, AudioError):
            rejected.append(Reject(piece.path, str(header), label))
        else:
            path, start, end = piece
            attack = None if attack in (*NO_ATTACK, label) else attack
            told = group or path, *header, fold, split, attack, start, end
            recordings.append(Recording(path, label, *told))
    check_overlaps(recordings)
    recordings.sort(key=lambda r: (place(r.path, seed), r.start, r.end or math.inf))
    rejected.sort(key=lambda r: place(r.path, seed))
    return Scan(recordings, rejected, passed_by)


def find_files(audio: Root, named: Sequence[str], strict: bool) -> tuple[list[str], dict[int, str]]:
    """The paths that a table names as they are on the disk, and by row why one is not there."""
    paths, missing = [], {}
    for n, (path, reason) in enumerate(resolve(named, audio, SUFFIXES)):
        paths.append(path)
        if reason:
            missing[n] = reason
    if missing and strict:
        first = ", ".join(repr(paths[n]) for n in list(missing)[:3])
        raise UserError(
            f"--strict: {len(missing)} of {len(paths)} rows name no file below {audio}, such as "
            f"{first}; mend the table, --audio_root, or leave --strict away"
        )
    return paths, missing


def pieces_of(table: Table, paths: Sequence[str]) -> list[Piece]:
    """What of which file each row means; a file is listed once, or in pieces that differ.

    Raises:
        UserError: a start or end that is no time, or a row that repeats another.
    """
    empty = [""] * len(paths)
    pieces = list(map(piece_of, paths, table.get("start", empty), table.get("end", empty)))
    rows = Counter(paths)
    if len(rows) == len(paths):
        return pieces
    for piece, count in Counter(pieces).items():
        if count > 1 or (piece.is_whole and rows[piece.path] > 1):
            raise UserError(
                f"{piece.path!r} is in {rows[piece.path]} rows of the table; name a file once, or "
                "give each row a start and end of its own"
            )
    return pieces


def piece_of(path: str, start: str, end: str) -> Piece:
    """A row's piece of its file."""
    try:
        piece = Piece(path, float(start or 0), float(end) if end else None)
    except ValueError:
        piece = Piece(path, math.nan)
    if not 0 <= piece.start < (LATEST if piece.end is None else piece.end) <= LATEST:
        raise UserError(
            f"{path!r}: start {start!r} and end {end!r} in the table; expected seconds, 0 <= start "
            "< end"
        )
    return piece


def check_overlaps(recordings: Iterable[Recording]) -> None:
    """Raise a UserError that names two pieces of a file which share audio, but not their group."""
    pieces = sorted((r for r in recordings if not r.piece.is_whole), key=lambda r: r.piece[:2])
    reaching: dict[str, Recording] = {}  # of each file the piece that ends last so far
    for r in pieces:
        last = reaching.setdefault(r.path, r)
        if r.start < (last.end or math.inf) and r.group != last.group:
            raise UserError(
                f"{r.path!r}: its pieces from {last.start:g} s and {r.start:g} s overlap, but are "
                f"in groups {last.group!r} and {r.group!r}; give them one group"
            )
        if (r.end or math.inf) > (last.end or math.inf):
            reaching[r.path] = r


def check_classes(audio: Root, labels: Iterable[str], passed_by: Sequence[str]) -> None:
    """Raise a UserError unless `labels` name at least two classes."""
    classes = classes_of(labels)
    if not classes:
        loose = sum(map(is_audio, passed_by))
        what = f"audio ({loose}), but in no folder of a class" if loose else "no audio in it"
        or_else = "; --label_from=REGEX finds a class in a file's name" if loose else ""
        raise UserError(
            f"{audio}: {what}; expected {audio}/CLASS/NAME.wav (or flac, ogg, mp3, ...){or_else}"
        )
    if len(classes) == 1:
        raise UserError(
            f"{audio}: one class only, {classes[0]!r}; a classifier needs at least two, by default "
            "a folder each with audio in it"
        )


def column(flag: str, text: str, table: Table, paths: Sequence[str]) -> list[str]:
    """A word for each path: what stands in the column of that name, or what the pattern finds.

    Raises:
        UserError: a word is missing; a group may be in a table, it is the file then, and an attack
            anywhere.
    """
    if text not in table:
        try:
            return values(flag, compiled(flag, text), paths)
        except UserError as error:
            columns = f"; or name a column of the table: {', '.join(table)}" if table else ""
            raise UserError(f"{error}{columns}") from None
    words = table[text]
    gap = next((word for word in set(words) if not (names(word) and word)), None)
    if gap is not None and flag not in GAPS:
        path = paths[words.index(gap)]
        raise UserError(f"--{flag}={text}: {path!r} has nothing in that column; fill it in")
    return words


def compiled(flag: str, text: str) -> re.Pattern[str]:
    """The regular expression that a flag gives."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"--{flag}={text}: no regular expression ({error}); mend it") from None


def values(flag: str, pattern: re.Pattern[str], paths: Sequence[str]) -> list[str]:
    """What `pattern` finds in each path.

    Raises:
        UserError: it finds nothing in some.
    """
    found = [value(pattern, path) for path in paths]
    missed = [path for path, text in zip(paths, found, strict=True) if not text]
    if missed and (flag != "attack_from" or len(missed) == len(paths)):
        raise UserError(
            f"--{flag}={pattern.pattern}: does not match {missed[0]!r} ({len(missed)} of "
            f"{len(paths)} files); change the pattern or move these files away"
        )
    return found


def value(pattern: re.Pattern[str], path: str) -> str:
    """Group 1 of the match, or the whole match; empty if there is none."""
    match = pattern.search(path if "/" in pattern.pattern else path.rpartition("/")[2])
    return (match[1] if pattern.groups else match[0]) or "" if match else ""


def split_name(text: str) -> str:
    """`Validation` as `val`: a part as wavefold calls it, where there is a spelling for it."""
    return SPELLINGS.get(text.lower(), text.lower())
