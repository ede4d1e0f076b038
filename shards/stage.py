"""A shard set copied to a disk of this machine, once for all its processes and all its trainings.

Where a file system of many nodes is read at random, the node's own disk is faster and bothers
nobody. The copy lies under the digest of its dataset.json, so that of a set that was rebuilt is
another one.
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.cache import locked
from shards.durable import sha256, sync_folder
from shards.errors import UserError
from shards.index import check_size, current, read_info

log = logging.getLogger(__name__)

SPARE = 64 << 20  # bytes of the disk that are left to others


def staged(
    path: str | os.PathLike[str],
    place: str | os.PathLike[str],
    beat: Callable[[], None] = lambda: None,
) -> Path:
    """The copy of the set at `path` in a folder of `place`, made and checked if it is not there.

    One process copies, others wait for it; what was copied before is used again. Where there is no
    room, or no such place, training goes on from `path` itself. All call `beat` while it goes on.

    Raises:
        UserError: no finished shard set at `path`, or what comes is not what its checksums say.
    """
    source = Path(path)
    info = read_info(source)
    digest = hashlib.sha256(current(source, "dataset.json").read_bytes()).hexdigest()[:16]
    copy = Path(place) / f"wavefold-{digest}"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with locked(copy.with_suffix(".lock"), keep=True, beat=beat):
            if not is_whole(copy, info):
                copy_set(source, copy, info, beat)
    except OSError as error:
        reason = error.strerror or str(error)
        log.warning("data.stage=%s: %s; training goes on from %s", place, reason, source)
        return source
    return copy


def entries(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of each file that is needed, dataset.json aside."""
    return {shard["name"]: shard for shard in info["shards"]} | info["files"]


def is_whole(copy: Path, info: dict[str, Any]) -> bool:
    """Whether a copy is there; its dataset.json, which comes last, says that it was checked."""
    if not (copy / "dataset.json").exists():
        return False
    try:
        for name, entry in entries(info).items():
            check_size(copy / name, entry["bytes"])
    except UserError:  # somebody cleaned up behind us
        return False
    return True


def copy_set(source: Path, copy: Path, info: dict[str, Any], beat: Callable[[], None]) -> None:
    """Copy a set, file by file, and check what came; none of it stays if it cannot be had whole.

    Raises:
        UserError: a file's SHA-256 is not what `info` says.
    """
    files = entries(info)
    total = sum(entry["bytes"] for entry in files.values())
    shutil.rmtree(copy, ignore_errors=True)  # of a process that was killed
    if shutil.disk_usage(copy.parent).free < total + SPARE:
        raise OSError(errno.ENOSPC, f"{total / 1e9:.2f} GB of shards find no room there")
    log.info("copying %.2f GB of %s to %s", total / 1e9, source, copy)
    try:
        copy.mkdir()
        for name, entry in files.items():
            shutil.copyfile(current(source, name), copy / name)
            beat()
            if sha256(copy / name) != entry["sha256"]:
                raise UserError(
                    f"{source / name}: its SHA-256 is not what dataset.json says; copy it again or "
                    "rebuild the set"
                )
        shutil.copyfile(current(source, "dataset.json"), copy / "dataset.json.part")
        sync_folder(copy)
        os.rename(copy / "dataset.json.part", copy / "dataset.json")
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
