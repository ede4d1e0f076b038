"""Which recordings there are: a folder a class, and what file names say of groups and folds."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from shards.audio import AudioError, Probe, probe
from shards.errors import UserError
from shards.index import display_name

#: What libsndfile and FFmpeg read, by the suffixes that people give it.
SUFFIXES = {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus"}
SUFFIXES |= {".rf64", ".snd", ".w64", ".wav", ".wave"}
SUFFIXES |= {".aac", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma"}
PROBES = 8  # headers on network storage wait, they do not compute
CLASSES_SHOWN = 20
SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "test"}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One audio file: what its place, its name and its header say."""

    path: str  # below the audio folder, with "/", as the file system spells it
    label: str  # the first folder of `path`
    group: str  # never on both sides of a split; `path` itself if no groups are named
    fold: str | None = None
    split: str | None = None  # "train", "val" or "test"
    frames: int
    sample_rate: int  # Hz
    channels: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


class Reject(NamedTuple):
    """A file that cannot be used, as a line of rejected.csv."""

    path: str
    reason: str


class Scan(NamedTuple):
    """What an audio folder holds; `passed_by` are the files that are no audio in a class folder."""

    recordings: list[Recording]
    rejected: list[Reject]
    passed_by: list[str]


def nfc(text: str) -> str:
    """Text as it compares: macOS and Linux spell an accented name in different bytes."""
    return unicodedata.normalize("NFC", text)


def natural(text: str) -> tuple[list[str | int], str]:
    """A sort key under which "2" comes before "10"."""
    pieces = re.split(r"(\d+)", nfc(text))
    return [int(p) if n % 2 else p for n, p in enumerate(pieces)], text


def place(path: str, seed: int) -> tuple[bytes, str]:
    """A sort key: where the seed puts `path`, whatever other files there are."""
    text = f"{seed}\0{nfc(path)}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest(), path


def scan(
    audio: Path,
    *,
    seed: int = 0,
    group_from: str | None = None,
    fold_from: str | None = None,
    split_from: str | None = None,
) -> Scan:
    """Read the names and headers below `audio`; recordings in the order of the seed, classes mixed.

    A pattern is searched in the file name, or in the path below `audio` if the pattern has a `/`;
    its value is group 1, or the whole match if it has no group. Hidden files are skipped.

    Raises:
        UserError: no folder, no audio, a single class, a pattern that is no regular expression or
            that a file does not match.
    """
    flags = {"group_from": group_from, "fold_from": fold_from, "split_from": split_from}
    patterns = {flag: compiled(flag, text) for flag, text in flags.items() if text is not None}
    if not audio.is_dir():
        raise UserError(f"{audio}: no such folder; give the folder that holds one folder a class")
    found = sorted((str(f) for f in files_below(audio, audio)), key=lambda p: (nfc(p), p))
    paths = [p for p in found if is_recording(p)]
    check_classes(audio, paths)
    named = {flag: values(flag, pattern, paths) for flag, pattern in patterns.items()}

    recordings, rejected = [], []
    for n, (path, header) in enumerate(zip(paths, headers(audio, paths), strict=True)):
        if isinstance(header, AudioError):
            rejected.append(Reject(path, str(header)))
            continue
        said = {flag.removesuffix("_from"): named[flag][n] for flag in named}
        if "split" in said:
            said["split"] = split_name(said["split"])
        about = {"label": path.partition("/")[0], "group": path} | said
        recordings.append(Recording(path=path, **about, **vars(header)))  # type: ignore[arg-type]
    recordings.sort(key=lambda r: place(r.path, seed))
    rejected.sort(key=lambda r: place(r.path, seed))
    return Scan(recordings, rejected, [p for p in found if not is_recording(p)])


def files_below(
    folder: Path, root: Path, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[PurePosixPath]:
    """Every file that is not hidden, as a path below `root`; links to folders are followed."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above itself
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if path.is_dir() if entry.is_symlink() else entry.is_dir():  # a link may be a circle
                yield from files_below(path, root, above | {here})
            else:  # also a dangling link or a FIFO: it will say that it is no recording
                yield PurePosixPath(path.relative_to(root).as_posix())


def is_recording(path: str) -> bool:
    """Whether `path` lies in a class folder and ends like audio."""
    return "/" in path and PurePosixPath(path).suffix.lower() in SUFFIXES


def check_classes(audio: Path, paths: Sequence[str]) -> None:
    """Raise a UserError unless `paths` name at least two classes."""
    classes = {path.partition("/")[0] for path in paths}
    if not classes:
        raise UserError(
            f"{audio}: no audio in it; expected {audio}/CLASS/NAME.wav (or flac, ogg, mp3, ...)"
        )
    if len(classes) == 1:
        raise UserError(
            f"{audio}: one class only, {classes.pop()!r}; a classifier needs at least two folders "
            "with audio in them"
        )


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
    if missed:
        raise UserError(
            f"--{flag}={pattern.pattern}: does not match {missed[0]!r} ({len(missed)} of "
            f"{len(paths)} files); change the pattern or move these files away"
        )
    return found


def value(pattern: re.Pattern[str], path: str) -> str:
    """Group 1 of the match, or the whole match; empty if there is none."""
    match = pattern.search(path if "/" in pattern.pattern else path.rpartition("/")[2])
    return (match[1] if pattern.groups else match[0]) or "" if match else ""


def headers(audio: Path, paths: Sequence[str]) -> Iterator[Probe | AudioError]:
    """The header of each file, or why there is none, with a progress bar on a terminal."""

    def read(path: str) -> Probe | AudioError:
        try:
            str(audio / path).encode()  # what is no text breaks libsndfile and readers of JSON
            return probe(audio / path)
        except UnicodeEncodeError:
            return AudioError("its name is not valid UTF-8; rename it")
        except AudioError as error:
            return error

    with ThreadPoolExecutor(PROBES) as pool:
        yield from tqdm(
            pool.map(read, paths), "headers", len(paths), leave=False, unit="file", disable=None
        )


def split_name(text: str) -> str:
    """`Validation` as `val`: a part as wavefold calls it, where there is a spelling for it."""
    return SPELLINGS.get(text.lower(), text.lower())


def digest(recordings: Iterable[Recording], rejected: Iterable[Reject]) -> str:
    """SHA-256 over the recordings as understood, and over the names of the files left out."""
    total = hashlib.sha256()
    for recording in recordings:
        total.update(json.dumps(asdict(recording), sort_keys=True).encode() + b"\n")
    for reject in rejected:
        total.update(json.dumps(reject.path).encode() + b"\n")
    return total.hexdigest()


def describe(found: Scan) -> str:
    """What was understood, for people, before any work starts."""
    recordings = found.recordings
    hours = sum(r.seconds for r in recordings) / 3600
    classes = Counter(r.label for r in recordings)
    lines = [f"recordings   {len(recordings)} ({hours:.2f} h) in {len(classes)} classes"]
    for label in sorted(classes, key=natural)[:CLASSES_SHOWN]:
        lines.append(f"  {classes[label]:>8}   {display_name(label)}")
    if len(classes) > CLASSES_SHOWN:
        lines.append(f"  {'...':>8}   and {len(classes) - CLASSES_SHOWN} more")
    lines.append(f"groups       {len({r.group for r in recordings})}")
    lines.append(f"sample rate  {counted(f'{r.sample_rate} Hz' for r in recordings)}")
    lines.append(f"channels     {counted(str(r.channels) for r in recordings)}")
    for name in ("fold", "split"):
        told = [getattr(r, name) for r in recordings if getattr(r, name) is not None]
        if told:
            lines.append(f"{name:<13}{counted(told)}")
    if found.rejected:
        lines.append(f"unreadable   {len(found.rejected)}, such as {found.rejected[0].path}")
    if found.passed_by:
        kinds = counted(PurePosixPath(p).suffix or "no suffix" for p in found.passed_by)
        lines.append(f"passed by    {kinds}: no audio in a class folder")
    return "\n".join(lines)


def counted(things: Iterable[str]) -> str:
    """`1 (20), 2 (19)`: what there is and how often."""
    counts = Counter(things)
    return ", ".join(f"{thing} ({counts[thing]})" for thing in sorted(counts, key=natural))
