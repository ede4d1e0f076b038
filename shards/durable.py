"""Files written so that they are there whole or not at all, and their checksums."""

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomic(file: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data` under its name whole or not at all: aside, fsync, rename, fsync the folder."""
    aside = file.with_name(
        f".{file.name}.{secrets.token_hex(4)}.tmp"
    )  # pids repeat across machines
    try:
        write(aside, data)
        sync_folder(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(file.parent)


def write(file: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, without waiting for the disk."""
    with open(file, "wb") as out:
        out.writelines([data] if isinstance(data, bytes) else data)


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
    with open(file, "rb", buffering=0) as content:
        while data := content.read(1 << 19):  # bytes: they stay in the cache
            digest.update(data)
    return str(digest.hexdigest())
