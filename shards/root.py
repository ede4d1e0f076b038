"""Where recordings are: a folder of this machine, or an address.

A recording from elsewhere is on this machine for as long as it is worked on: its worker fetches it
to a temporary file, decodes that as any other, and the next one takes its place.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shards.audio import probe
from shards.cache import cache_place, sweep, temporary
from shards.container import AudioError, Probe, checked
from shards.remote import WEB, FetchError, Url, filesystem, is_url, names_in
from shards.transfer import fetch

Root = Path | Url

BLOCK = 1 << 16  # bytes of a header that are fetched at once

_last = threading.local()  # url and file: what this thread fetched


class Unfetched(AudioError):
    """A recording that did not come, after all tries."""


def as_root(text: str) -> Root:
    """A word of the user's as a place."""
    return Url(text.rstrip("/")) if is_url(text) else Path(text)


def url_of(root: Root, path: str) -> Url | None:
    """The address of a recording, if it has one; `path` may be an address itself."""
    if is_url(path):
        return Url(path)
    return root / path if isinstance(root, Url) else None


@contextmanager
def local(root: Root, path: str) -> Iterator[Path]:
    """A recording as a file of this machine.

    Raises:
        Unfetched: it cannot be had.
        OSError: no room for it on this machine.
    """
    url = url_of(root, path)
    if url is None:
        yield root / path  # type: ignore[misc]
        return
    yield fetched(str(url))


def fetched(url: str) -> Path:
    """The recording at an address, in the temporary file of this thread.

    It stays until the thread wants another one: the pieces of a recording follow each other.
    """
    if getattr(_last, "url", None) != url:
        release()
        file = temporary(Url(url).suffix)
        try:
            fetch(url, Path(file.name))
        except FetchError as error:
            file.close()
            raise Unfetched(f"could not be fetched: {error.reason}") from None
        except BaseException:
            file.close()
            raise
        _last.url, _last.file = url, file
    return Path(_last.file.name)


def release() -> None:
    """Remove the temporary file of this thread."""
    if getattr(_last, "url", None) is not None:
        _last.file.close()
        _last.url = None


def read_header(root: Root, path: str) -> Probe:
    """The header of a recording; of one that is elsewhere no more is fetched than that takes.

    Raises:
        AudioError: see `probe`; Unfetched.
    """
    url = url_of(root, path)
    if url is not None and url.suffix.lower() != ".mp3":  # which tells its length at its end
        with suppress(Exception):  # a format for FFmpeg, no ranges, ...: then all of it
            return remote_header(str(url))
    try:
        with local(root, path) as file:
            return probe(file)
    finally:
        release()


def remote_header(url: str) -> Probe:
    """What libsndfile reads in a few blocks of a file."""
    import soundfile

    fs, path = filesystem(url)
    with fs.open(path, "rb", block_size=BLOCK) as file:
        quiet = Quiet(file)
        with soundfile.SoundFile(quiet) as audio:
            found = checked(Probe(audio.frames, audio.samplerate, audio.channels))
    if quiet.failed or not found.frames:
        raise Unfetched("not to be read in parts")
    return found


@contextmanager
def tidied() -> Iterator[None]:
    """Leave no fetched recording behind: not of this process, nor of workers that were stopped."""
    try:
        yield
    finally:
        release()
        sweep(cache_place())


class Quiet:
    """A file that ends where it cannot be read: libsndfile prints what its callbacks raise."""

    def __init__(self, file: Any) -> None:
        self.file, self.failed = file, False
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        """The next bytes."""
        try:
            return bytes(self.file.read(count))
        except Exception:
            self.failed = True
            return b""


def below(root: Root, path: str) -> str:
    """A path or address as one relative to `root`, where it lies below it."""
    if isinstance(root, Path):
        if not path.startswith(("/", "..")):
            return path
        here = os.path.abspath(root)
        inside = os.path.normpath(os.path.join(here, path)).removeprefix(f"{here}/")
        return path if inside.startswith("/") else inside
    if not path.startswith(f"{root}/"):
        return path
    path = path.removeprefix(f"{root}/")
    return unquote(path) if root.scheme in WEB else path


def listing(folder: Root) -> list[str]:
    """The names in a folder; none where there is no such folder, or it cannot be listed."""
    if isinstance(folder, Url):
        return names_in(folder)
    return os.listdir(folder) if folder.is_dir() else []
