"""The folder .build inside OUT: what a build or its parts promised, and the notes of each shard.

It is gone when the set is whole. Parts on machines of their own each leave one; copied into one
OUT they are one.
"""

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from shards import __version__, installed, output
from shards.errors import UserError
from shards.index import (
    BESIDE,
    READY,
    current,
    open_set,
    read_info,
    shard_name,
    sync_folder,
    write_atomic,
)
from shards.notes import load
from shards.plan import Plan, make_recipe
from shards.recording import Reject

#: Libraries of which another version may give other bytes; MKL is not there for every processor.
DECIDE_BYTES = ["av", "librosa", "mkl", "mkl_fft", "numba", "numpy", "pyloudnorm", "scipy"]
DECIDE_BYTES += ["soundfile", "soxr", "torch"]


DAMAGED = (FileNotFoundError, BadZipFile, EOFError, KeyError, RuntimeError, ValueError)  # of notes


def promise(plan: Plan) -> dict[str, Any]:
    """What plan.json says: all that two parts have to agree on, and all that finishing needs."""
    return {
        "versions": {"wavefold": __version__} | {name: installed(name) for name in DECIDE_BYTES},
        "settings": dict(plan.settings),
        "manifest": plan.manifest,
        "base": plan.base.info["manifest"] if plan.base else None,
        "command": plan.command,
        "method": plan.method,
        "classes": plan.classes,
        "label_sets": plan.label_sets,
        "folds": plan.folds,
        "shards": list(plan.shards),
        "rejected": plan.rejected,
    }


def enter(plan: Plan, folder: Path) -> None:
    """Leave the promise of a build in `folder`, .build or a part's own in it.

    Raises:
        UserError: another one that stands there differs; it says in what.
    """
    file, mine = folder / "plan.json", promise(plan)
    agree(plan.out, mine)
    if not file.exists():
        write_atomic(file, json.dumps(mine, indent=2).encode() + b"\n")
        try:
            agree(plan.out, mine)  # again: another part may have begun at the same moment
        except UserError:
            file.unlink()
            raise


def agree(out: Path, mine: Mapping[str, Any]) -> None:
    """Raise a UserError that lists in what the promises that stand in `out` differ from `mine`."""
    for there in output.promises(out):
        output.check_settings(out, there, mine["settings"] | mine["versions"])
        output.check_manifest(out, there, mine["manifest"])


def recall(out: Path) -> Plan:
    """The plan that was promised, without its recordings: those that are left are in the notes.

    Raises:
        UserError: parts of different builds, or of another set to append to.
    """
    there = output.promises(out)[0]
    agree(out, there)
    words = shlex.split(there["command"])  # of the place where it was made
    command = shlex.join([*words[:5], str(out), *words[6:]])
    if "convert" in there["settings"]:
        raise UserError(f"{out}: not of parts; start the same `convert` again")
    base = open_set(out) if there["base"] else None
    if base and base.info["manifest"] != there["base"]:
        raise UserError(f"{out}: changed since its parts were made; make them again: {command}")
    return Plan(
        recipe=make_recipe(Path(), there["settings"] | {"device": "cpu"}),  # where no GPU may be
        out=out,
        recordings=[],
        rejected=[Reject(*reject) for reject in there["rejected"]],
        classes=there["classes"],
        label_sets=there["label_sets"],
        folds=there["folds"],
        method=there["method"],
        shards={number: range(0) for number in there["shards"]},
        settings=there["settings"],
        manifest=there["manifest"],
        base=base,
        command=command,
    )


def is_complete(plan: Plan) -> bool:
    """Whether the planned set is there.

    Raises:
        UserError: a set is there, but not the planned one, nor the one to append to.
    """
    if not current(plan.out, "dataset.json").exists():
        return False
    there = read_info(plan.out)
    if plan.base is None or there["manifest"] != plan.base.info["manifest"]:
        output.check_manifest(plan.out, there, plan.manifest)
    return bool(there["manifest"] == plan.manifest)


def reopen(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """End what was killed on its last lines; see that a build by `settings` may go on there.

    Raises:
        UserError: the set there has other settings, or the folder holds what is none of a set.
    """
    if (folder / READY).exists():
        with output.errors_named(folder), output.locked(folder):
            put_in_place(folder)
    output.check_contents(folder)
    there = None if overwrite else output.existing(folder)
    if there:
        output.check_settings(folder, there, settings)


def is_finished(plan: Plan) -> bool:
    """`is_complete`, and then nothing of the build is left beside the set."""
    if not is_complete(plan):
        return False
    if (plan.out / BESIDE).exists():
        with output.locked(plan.out):
            put_in_place(plan.out)
    return True


def begin(plan: Plan, part: Path | None, overwrite: bool) -> None:
    """Make the workshop inside OUT, or enter the one that is there; a part has a folder in it."""
    workshop = plan.out / BESIDE
    if overwrite and not is_going_on(plan):
        output.clear(plan.out)
    others = [there for there in output.promises(plan.out) if there["manifest"] != plan.manifest]
    if plan.base and part is None and others:
        shutil.rmtree(workshop)  # an append that was stopped, and then there were other files
    workshop.mkdir(exist_ok=True)
    enter(plan, part or workshop)


def is_going_on(plan: Plan) -> bool:
    """Whether what stands there is this very command, --overwrite included, that was stopped: a job
    that is started again and again would else never come to its end."""
    mine = json.loads(json.dumps(promise(plan)))
    with suppress(UserError):  # a damaged one
        return not (plan.out / "dataset.json").exists() and mine in output.promises(plan.out)
    return False


def notes_file(out: Path, shard: int) -> Path:
    """Where the notes of a shard wait for the end."""
    return out / BESIDE / Path(shard_name(shard)).with_suffix(".npz")


def is_written(out: Path, shard: int) -> bool:
    """Whether a shard and its notes are there and fit together."""
    file, notes = out / shard_name(shard), notes_file(out, shard)
    try:
        return load(notes).size == file.stat().st_size
    except DAMAGED:  # made again
        return False


def missing(plan: Plan) -> list[int]:
    """The numbers of the shards that are still to be made."""
    return [shard for shard in plan.shards if not is_written(plan.out, shard)]


def put_in_place(out: Path) -> None:
    """The last step, which any later start can take instead: files to their places, rest away."""
    ready = out / READY
    if ready.exists():
        for file in sorted(ready.iterdir(), key=lambda file: file.name == "dataset.json"):
            os.replace(file, out / file.name)
        sync_folder(out)
    listed = {entry["name"] for entry in read_info(out)["shards"]}
    for entry in list(os.scandir(out)):
        if output.SHARD.fullmatch(entry.name) and entry.name not in listed:
            os.unlink(entry.path)  # of a larger set that was being replaced
    shutil.rmtree(out / BESIDE, ignore_errors=True)
