"""Files written so that they are there whole or not at all, and their checksums."""

import csv
import hashlib
import io
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomic(file: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data` under its name whole or not at all."""
    # Process numbers come twice on different machines.
    aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    with becoming(file, aside):
        write(aside, data)


@contextmanager
def becoming(file: Path, aside: Path) -> Iterator[None]:
    """What is written to `aside` within is `file` afterwards: fsync, rename, fsync the folder."""
    try:
        yield
        sync_folder(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(file.parent)


def write(file: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, without waiting for the disk."""
    with open(file, "wb") as out:
        out.writelines([data] if isinstance(data, bytes) else data)


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file of these rows, the header first; a name need not be valid text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def write_output(file: Path, data: bytes) -> None:
    """Write what a user wants at a place of their choice: a file whole or not at all, its folder
    made if need be; or into a pipe or device, which a rename would replace."""
    if file.exists() and not file.is_file():
        file.write_bytes(data)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(os.path.realpath(file)), data)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut; or what is in it, if it is a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_entry(file: Path) -> dict[str, Any]:
    """What dataset.json notes of a file: its bytes and its SHA-256."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    return digested(file, hashlib.sha256())


def xxh128(file: Path) -> str:
    """The XXH3-128 of a file's content, in hex, in a tenth of the time: tells apart what was not
    made to deceive."""
    import xxhash

    return digested(file, xxhash.xxh3_128())


def digested(file: Path, digest: Any) -> str:
    """A file's content put through a hash, in hex."""
    content = os.open(file, os.O_RDONLY)
    try:
        while data := os.read(content, 1 << 16):  # bytes: they stay in the cache
            digest.update(data)
    finally:
        os.close(content)
    return str(digest.hexdigest())
