"""Files from elsewhere on this machine's disk: bounded, checked, one copy for all its processes.

A file lies under its SHA-256, so the same shard of two sets, or at two addresses, is there once and
is never stale. Whoever uses a file holds a shared lock on it, whoever fetches one an exclusive lock
on the temporary it grows in; the kernel lets go of both when a process dies, however it dies.
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shards.durable import sha256, sync_folder
from shards.remote import Damaged
from shards.transfer import fetch

logger = logging.getLogger(__name__)

CACHE_GB = 50.0
LOOK = 0.05  # seconds between two looks at a lock that another holds
PART = "part"  # temporaries are `part.SIZE.NAME`: what they will take up counts from the start


def cache_place() -> Path:
    """$WAVEFOLD_CACHE, or ~/.cache/wavefold."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wavefold"
    return Path(os.environ.get("WAVEFOLD_CACHE") or base)


def cache_folder() -> Path:
    """The folder at `cache_place`, made if need be."""
    folder = cache_place()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Cache:
    """The files in `folder`, at most `gigabytes` (10^9 bytes) of them as long as they are not all
    in use at once."""

    def __init__(self, gigabytes: float = CACHE_GB, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()
        self.limit = int(gigabytes * 1e9)
        self.hits = self.misses = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)

    def open(self, url: str, entry: dict[str, Any]) -> int:
        """A descriptor of the file that dataset.json describes by `entry`, fetched if need be.

        As long as it is open no process removes the file.

        Raises:
            FetchError: it cannot be had, or what comes is not what it should be.
            OSError: no room, or no access; it names the cache.
        """
        file, hit = self.folder / entry["sha256"], True
        while True:
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except FileNotFoundError:
                try:
                    self.fetch(url, file, entry)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(self.folder)) from None
                hit = False
                continue
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if is_at(descriptor, file):
                with suppress(OSError):  # another user's, or a disk that is read alone
                    os.utime(descriptor)  # used last: see `make_room`
                self.hits += hit
                return descriptor
            os.close(descriptor)  # removed between the two

    def fetch(self, url: str, file: Path, entry: dict[str, Any]) -> None:
        """Fetch a file to its place, or wait until another process has."""
        part = file.with_name(f"{PART}.{entry['bytes']}.{file.name}")
        with locked(part) as is_mine:
            if not is_mine or file.exists():
                return
            self.misses += 1
            self.make_room()
            get(url, part, entry)
            os.replace(part, file)

    def make_room(self) -> None:
        """Remove files that nobody has open, longest unused first, until what is coming fits."""
        with locked(self.folder / "lock", keep=True):
            sweep(self.folder)
            files = {file: file.stat() for file in entries(self.folder)}
            parts = [int(file.name.split(".")[1]) for file in self.folder.glob(f"{PART}.*")]
            total = sum(status.st_size for status in files.values()) + sum(parts)
            for file in sorted(files, key=lambda file: files[file].st_mtime_ns):
                if total <= self.limit:
                    return
                if remove_unused(file):
                    total -= files[file].st_size
            if total > self.limit:
                logger.warning(
                    "%s: %.1f GB are in use at once, more than cache_gb=%g; give more, or use the "
                    "order that goes window by window", self.folder, total / 1e9, self.limit / 1e9,
                )  # fmt: skip


def get(url: str, file: Path, entry: dict[str, Any]) -> None:
    """Download a file and hold it against what dataset.json says of it."""

    def check() -> None:
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise Damaged(f"{size} bytes came, dataset.json says {entry['bytes']}")
        found = sha256(file)
        if found != entry["sha256"]:
            raise Damaged(f"SHA-256 {found} came, dataset.json says {entry['sha256']}")

    fetch(url, file, check)
    sync_folder(file)


def entries(folder: Path) -> list[Path]:
    """The files of a cache that are whole."""
    return [file for file in folder.iterdir() if len(file.name) == 64 and "." not in file.name]


def is_at(descriptor: int, file: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


@contextmanager
def locked(
    file: Path, keep: bool = False, beat: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Hold `file`, made if need be, alone; whether it is still there when that succeeds.

    What is left of it afterwards is removed, unless it is to `keep`. Who waits calls `beat`.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_mine = taken(descriptor, file, beat)
        try:
            yield is_mine
        finally:
            if not keep and is_at(descriptor, file):
                file.unlink()
    finally:
        os.close(descriptor)


def taken(descriptor: int, file: Path, beat: Callable[[], None]) -> bool:
    """Wait for the lock of an open file; False once another file, or none, has its name.

    Not by a lock that blocks: a shard that has come keeps its inode under its new name, and whoever
    reads it holds the lock as long as the training lasts.
    """
    while is_at(descriptor, file):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            beat()
            time.sleep(LOOK)
            continue
        return is_at(descriptor, file)
    return False


def remove_unused(file: Path) -> bool:
    """Remove a file unless some process holds it."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(descriptor, file):
            file.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporaries of processes that are no more."""
    for file in folder.glob(f"{PART}.*"):
        remove_unused(file)


def temporary(suffix: str) -> "IO[bytes]":
    """A file in the cache folder that is gone when it is closed, or swept if its process dies."""
    while True:
        file = tempfile.NamedTemporaryFile(prefix=f"{PART}.0.", suffix=suffix, dir=cache_folder())  # noqa: SIM115
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        if is_at(file.fileno(), Path(file.name)):
            return file
