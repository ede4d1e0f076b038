"""The end of a build: the notes of all its shards, whoever made them, joined into a set."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from shards.append import old_notes
from shards.dataset import Totals, write_dataset
from shards.errors import UserError
from shards.index import BESIDE, READY, current, read_info, sync_folder
from shards.notes import Notes, load
from shards.output import clear, errors_named, existing, locked, promises
from shards.part import check_all_written
from shards.plan import Plan, check_left
from shards.progress import with_progress
from shards.workshop import notes_file, put_in_place, recall


def merge(out: str) -> None:
    """Finish a set whose shards were made by `build --part=I/N`, when all are there.

    Raises:
        UserError: no parts there, shards missing, or parts of different builds.
    """
    folder = Path(out)
    if existing(folder) is None:
        raise UserError(f"{out}: no parts of a build; make them with `build AUDIO OUT --part=0/2`")
    with errors_named(folder), locked(folder):
        if is_over(folder):
            put_in_place(folder)
        else:
            plan = recall(folder)
            check_all_written(plan)
            finish(plan)


def is_over(out: Path) -> bool:
    """Whether what was promised in `out` is what stands there."""
    manifests = {there["manifest"] for there in promises(out)}
    there = read_info(out)["manifest"] if current(out, "dataset.json").exists() else None
    return manifests <= {there}


def finish(plan: Plan) -> None:
    """Join the notes into the final files, and put the workshop away."""

    def notes() -> Iterator[Notes]:
        yield from old_notes(plan.base) if plan.base else ()
        for shard in with_progress(plan.shards, "join", len(plan.shards), "shards"):
            yield load(notes_file(plan.out, shard))

    totals = Totals(plan, notes)
    if plan.base is None:
        try:
            check_left(totals.classes, totals.rejected)
        except UserError:
            clear(plan.out)
            raise
    aside = plan.out / READY.with_suffix(".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    write_dataset(replace(plan, out=aside), totals, notes)
    with ThreadPoolExecutor() as pool:  # the disk takes them together
        list(pool.map(sync_folder, [*aside.iterdir(), aside]))
    os.rename(aside, plan.out / READY)
    sync_folder(plan.out / BESIDE)
    put_in_place(plan.out)
