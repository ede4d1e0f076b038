"""The audio files below a folder, and what their headers say."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from shards.audio import AudioError, Probe, piece_frames
from shards.errors import UserError
from shards.labels import nfc
from shards.progress import Progress
from shards.recording import Piece
from shards.remote import Url, list_files
from shards.root import Root, read_header, tidied
from shards.workers import in_runs, ordered

#: What libsndfile and FFmpeg read, by the suffixes that people give it.
SUFFIXES = {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus"}
SUFFIXES |= {".rf64", ".snd", ".w64", ".wav", ".wave"}
SUFFIXES |= {".aac", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma"}
NEAR, FAR = 2, 8  # processes that read headers: over a network they wait
OUTSIDE = "begins behind the end of its file"
RUN = 32  # headers that one of them reads at once


def list_folder(audio: Root, loose: bool) -> tuple[list[str], list[str]]:
    """The audio files below a folder, in class folders unless `loose`; and what is passed by."""
    if isinstance(audio, Url):
        paths = [path for path in list_files(audio) if not re.search(r"(^|/)\.", path)]
    elif audio.is_dir():
        paths = list(files_below(audio))
    else:
        raise UserError(f"{audio}: no such folder; give the folder that holds one folder a class")
    found = sorted(paths, key=lambda path: (nfc(path), path))
    taken = [is_audio(path) and (loose or "/" in path) for path in found]
    passed_by = [path for path, take in zip(found, taken, strict=True) if not take]
    return [path for path, take in zip(found, taken, strict=True) if take], passed_by


def files_below(
    folder: str | Path, within: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Every file that is not hidden, as a path `within` the root; links to folders are followed."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above itself
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                yield from files_below(entry.path, f"{within}{entry.name}/", above | {here})
            else:  # also a dangling link or a FIFO: it will say that it is no recording
                yield within + entry.name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def is_audio(path: str) -> bool:
    """Whether `path` ends like audio."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def headers(
    audio: Root, pieces: Sequence[Piece], missing: Mapping[int, str], timeout: float
) -> Iterator[Probe | AudioError]:
    """The header of each piece, or why there is none; a file is opened once.

    In processes of their own, since a file can kill who reads its header, or hang it for `timeout`
    seconds; 0 is no limit, and everything is done here.
    """
    paths = list(dict.fromkeys(piece.path for n, piece in enumerate(pieces) if n not in missing))
    is_far = isinstance(audio, Url)
    most, many = (1, FAR) if is_far else (RUN, NEAR)
    runs = list(in_runs(paths, most, total=len(paths), workers=many))
    probes = min(many, len(runs)) if timeout else 1
    outcomes = ordered(
        partial(read, audio), runs, probes, timeout=timeout, lost=lambda _, why: AudioError(why)
    )
    found = {}
    with tidied(), closing(outcomes), Progress("headers", len(paths)) as progress:
        for path, header in zip(paths, outcomes, strict=True):
            found[path] = header
            progress.update()
    for n, piece in enumerate(pieces):
        yield AudioError(missing[n]) if n in missing else clipped(found[piece.path], piece)


def read(audio: Root, path: str) -> Probe | AudioError:
    """One header, or why there is none."""
    try:
        f"{audio}/{path}".encode()  # what is no text breaks libsndfile and readers of JSON
        return read_header(audio, path)
    except UnicodeEncodeError:
        return AudioError("its name is not valid UTF-8; rename it")
    except AudioError as error:
        return error


def clipped(header: Probe | AudioError, piece: Piece) -> Probe | AudioError:
    """The header that a piece of a file would have as a file."""
    if isinstance(header, AudioError) or piece.is_whole:
        return header
    first, last = piece_frames(piece.start, piece.end, header.sample_rate)
    if first >= header.frames:
        return AudioError(f"{OUTSIDE} (from {piece.start:.10g} s, it has {header.seconds:g} s)")
    return header._replace(frames=min(last or header.frames, header.frames) - first)
