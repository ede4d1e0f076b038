"""The folder that a build writes into: what may be there, what is, whose it is."""

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any

from shards.errors import UserError
from shards.index import BESIDE, FILES, current, read_info
from shards.root import Root

logger = logging.getLogger(__name__)

SHARD = re.compile(r"samples-\d{6,}\.tar")
OURS = re.compile(
    "|".join([SHARD.pattern, *map(re.escape, (*FILES, "balance.png", "show.png", "dataset.json"))])
)
#: What stands in .build, some of it being written: see workshop.py, write.py, part.py, merge.py.
KEPT = re.compile(r"plan\.json|samples-\d{6,}\..*|part-\d+-of-\d+|ready(\.part)?|\..*")


def check_places(audio: Root, out: Path) -> None:
    """Raise a UserError unless `out` can be a folder, of its own, that may be written."""
    real = Path(os.path.realpath(out))  # resolve() raises at a link in a circle
    if isinstance(audio, Path) and audio.is_dir() and audio.resolve() in (real, *real.parents):
        raise UserError(f"{out}: lies inside the audio folder {audio}; give a place outside it")
    nearest = next(folder for folder in [out, *out.absolute().parents] if os.path.lexists(folder))
    if not nearest.is_dir():
        above = "" if nearest == out else f"{nearest} "
        raise UserError(f"{out}: {above}is a file, not a folder; give another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{out}: no permission to write into {nearest}; get it or give another place"
        )


def existing(out: Path) -> dict[str, Any] | None:
    """dataset.json of a finished set, plan.json of an unfinished one, or None."""
    if current(out, "dataset.json").exists():
        return read_info(out)
    return next(iter(promises(out)), None)


def promises(out: Path) -> list[dict[str, Any]]:
    """Every plan.json in the workshop: of a build, or one of each part."""
    files = [*out.glob(f"{BESIDE}/plan.json"), *sorted(out.glob(f"{BESIDE}/part-*/plan.json"))]
    return [read_promise(out, file) for file in files]


def read_promise(out: Path, file: Path) -> dict[str, Any]:
    """A plan.json; a UserError where it is none."""
    try:
        there = json.loads(file.read_bytes())
        if isinstance(there, dict) and "manifest" in there:
            return there
        damage = "no plan of a build"
    except ValueError as error:
        damage = f"not valid JSON ({error})"
    way_out = f"build with --overwrite, or python -m shards reset {quote(str(out))}"
    if (out / "dataset.json").exists():  # and was appended to
        way_out = f"remove {out / BESIDE} and start again"
    raise UserError(f"{file}: {damage}; {way_out}")


def is_ours(out: Path) -> bool:
    """Whether `out` holds a shard set, whole or begun; others have a .build or dataset.json too."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return all(map(KEPT.fullmatch, os.listdir(out / BESIDE)))
    with suppress(OSError):
        return b'"wavefold"' in (out / "dataset.json").read_bytes()  # elsewhere it may be damaged
    return False


def check_contents(out: Path) -> None:
    """Raise a UserError if `out` is a folder of something else: a build never mixes with it."""
    names = os.listdir(out) if out.exists() else []
    if names and not is_ours(out):
        raise UserError(
            f"{out}: not empty and no shard set ({min(names)!r} is in it); give a new folder"
        )


def check_settings(out: Path, there: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise a UserError that lists the settings in which the set at `out` differs.

    `settings` may name versions too: those that an unfinished build runs under.
    """
    old = there.get("settings", {}) | there.get("versions", {})
    names = [name for name in settings if old.get(name) != settings[name]]
    if names:
        differing = ", ".join(f"{n}: {old.get(n)} there, {settings[n]} asked" for n in names)
        raise UserError(
            f"{out}: built with other settings ({differing}); go on with those, or replace it by "
            "--overwrite"
        )


def check_manifest(out: Path, there: Mapping[str, Any], manifest: str) -> None:
    """Raise a UserError if the set at `out` was made of other recordings."""
    if there.get("manifest") != manifest and there.get("appended"):
        raise UserError(f"{out}: recordings were appended to it; start it with --append")
    if there.get("manifest") != manifest:
        raise UserError(
            f"{out}: built from other audio files than there are now (or other names, lengths, "
            "rates of them); --append adds new ones to a finished set, --overwrite replaces it"
        )


@contextmanager
def errors_named(out: Path) -> Iterator[None]:
    """Have an error of the file system name a place: "no space left" comes without one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(out)
        raise


@contextmanager
def locked(out: Path, shared: bool = False) -> Iterator[None]:
    """Hold `out` for one build at a time, or for parts of one, where the file system has locks."""
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another build is writing here; wait for it") from None
        except OSError as error:
            logger.warning(
                "%s: cannot be locked (%s); run one build at a time", out, error.strerror
            )
        yield
    finally:
        os.close(folder)


def clear(out: Path) -> None:
    """Remove what a build writes, dataset.json first, and nothing else."""
    (out / BESIDE).mkdir(exist_ok=True)  # killed before the end, what is left is still known
    (out / "dataset.json").unlink(missing_ok=True)
    for entry in list(os.scandir(out)):
        if OURS.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
    shutil.rmtree(out / BESIDE, ignore_errors=True)


def check_ours(out: Path) -> None:
    """Raise a UserError unless `out` holds a shard set, whole or begun."""
    if not is_ours(out):
        raise UserError(f"{out}: no shard set, whole or begun, is there; nothing was removed")


def reset(out: Path) -> None:
    """Remove what a build wrote into `out`, and the folder itself if nothing else is in it.

    Raises:
        UserError: no shard set there, or a build is writing into it.
    """
    check_ours(out)
    with locked(out):
        clear(out)
    with suppress(OSError):  # other things are in it, or it is a link, or where we stand
        out.rmdir()
