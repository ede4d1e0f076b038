"""Audio folder in, shard set out: resumable, and byte for byte the same however it was done."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic

from tqdm import tqdm

from shards.dataset import write_dataset
from shards.duplicates import warn
from shards.errors import UserError
from shards.index import ShardSet, open_set, shard_name, write_atomic
from shards.manifest import Recording, Reject
from shards.notes import load
from shards.output import (
    BESIDE,
    check_contents,
    check_manifest,
    check_places,
    check_settings,
    clear,
    existing,
    locked,
)
from shards.plan import Plan, check_left, make_plan, make_recipe, settle
from shards.shortcuts import describe
from shards.workers import available, ordered
from shards.write import Features, write_shard

logger = logging.getLogger(__name__)

Outcome = Features | Reject


def build(
    audio: str,
    out: str,
    *,
    sample_rate: int = 16000,
    segment_seconds: float = 5.0,
    overlap: float = 0.0,
    n_mels: int = 128,
    n_fft: int = 2048,
    hop_length: int = 512,
    fmin: float = 0.0,
    fmax: float | None = None,
    folds: int | None = None,
    split: str | None = None,
    fold_from: str | None = None,
    split_from: str | None = None,
    group_from: str | None = None,
    on_duplicate: str = "warn",
    seed: int = 0,
    shard_size: str = "256MB",
    workers: int | None = None,
    overwrite: bool = False,
) -> str:
    """Turn a folder of audio, one sub-folder a class, into a shard set.

    sample_rate, fmin, fmax in Hz (fmax: half the sample rate); n_fft, hop_length in samples;
    overlap is a share of a segment. --folds=5 is the default unless --split=0.7,0.15,0.15,
    --fold_from or --split_from is given. The *_from flags are regular expressions searched in the
    file name (in the path below AUDIO if they have a "/"): what names a recording's group (speaker,
    source clip), fold or part. --on_duplicate=group puts recordings that are copies of each other
    into one group, drop keeps the first of them, warn says afterwards where copies stand on two
    sides. A build that was stopped goes on where it was: start it again.

    Returns:
        What was built, in a few lines.

    Raises:
        UserError: words, audio or an existing OUT that cannot be built from or into.
    """
    words = dict(locals())
    for name in ("audio", "out", "workers", "overwrite"):
        del words[name]
    began = monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers}: has to be at least 1")
    folder = Path(out)
    check_places(Path(audio), folder)
    settings = settle(words)
    recipe = make_recipe(Path(audio), settings)
    there = None if overwrite else existing(folder)
    if there:
        check_settings(folder, there, settings)
    check_contents(folder)
    plan = make_plan(recipe, folder, settings, workers or available())
    if there:
        check_manifest(folder, there, plan)
        if "shards" in there:
            shutil.rmtree(folder / BESIDE, ignore_errors=True)  # killed on its last line
            return f"{folder}: complete already; nothing to do\n{summary(open_set(folder))}"
    with errors_named(folder), locked(folder):
        begin(plan, overwrite)
        made = write_shards(plan, workers or available())
        finish(plan)
    built = open_set(folder)
    warned = warn(built) if on_duplicate == "warn" else []
    took = monotonic() - began
    rate = f"{made} segments in {took:.1f} s, {made / took:.0f} a second"
    return "\n".join([summary(built), f"time        {rate}", *warned])


@contextmanager
def errors_named(out: Path) -> Iterator[None]:
    """Have an error of the file system name a place: "no space left" comes without one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(out)
        raise


def begin(plan: Plan, overwrite: bool) -> None:
    """Make the workshop inside OUT, or enter the one that is there."""
    if overwrite:
        clear(plan.out)
    workshop = plan.out / BESIDE
    workshop.mkdir(exist_ok=True)
    if not (workshop / "plan.json").exists():
        promise = {"settings": dict(plan.settings), "manifest": plan.manifest}
        write_atomic(workshop / "plan.json", json.dumps(promise, indent=2).encode() + b"\n")


def notes_file(plan: Plan, shard: int) -> Path:
    """Where the notes of a shard wait for the end."""
    return plan.out / BESIDE / Path(shard_name(shard)).with_suffix(".npz")


def is_written(plan: Plan, shard: int) -> bool:
    """Whether a shard and its notes are there and fit together."""
    file, notes = plan.out / shard_name(shard), notes_file(plan, shard)
    return file.exists() and notes.exists() and load(notes).size == file.stat().st_size


def write_shards(plan: Plan, workers: int) -> int:
    """Write the shards that are missing; how many samples that made."""
    todo = [shard for shard in range(len(plan.shards)) if not is_written(plan, shard)]
    places = [place for shard in todo for place in plan.shards[shard]]
    paths = [plan.recordings[place].path for place in places]
    done, made = len(plan.recordings) - len(places), 0
    if done:
        logger.info("going on: %d of %d recordings are done", done, len(plan.recordings))
    outcomes = ordered(plan.recipe.extract, paths, max(1, min(workers, len(paths))))
    bar = tqdm(total=len(plan.recordings), initial=done, desc="build", unit="rec", disable=None)
    with closing(outcomes), bar:
        for shard in todo:
            run = plan.shards[shard]
            work = paired(plan.recordings[run.start : run.stop], outcomes, bar)
            file, notes = plan.out / shard_name(shard), notes_file(plan, shard)
            written = write_shard(file, notes, shard, run.start, work, plan.numbers)
            made += len(written.rows)
    return made


def paired(
    recordings: Iterable[Recording], outcomes: Iterator[Outcome], bar: tqdm
) -> Iterator[tuple[Recording, Outcome]]:
    """Each recording with what became of it, as the bar counts."""
    for recording in recordings:
        outcome = next(outcomes)
        bar.update()
        yield recording, outcome


def finish(plan: Plan) -> None:
    """Join the notes into the final files, and put the workshop away."""
    shards = [load(notes_file(plan, n)) for n in range(len(plan.shards))]
    try:
        labels = {line["label"] for notes in shards for line in notes.recordings}
        check_left(labels, [reject for notes in shards for reject in notes.rejected])
    except UserError:
        clear(plan.out)
        raise
    write_dataset(plan, shards)
    shutil.rmtree(plan.out / BESIDE)


def summary(built: ShardSet) -> str:
    """What a shard set holds, in a few lines."""
    info, out = built.info, built.path
    size = sum(shard["bytes"] for shard in info["shards"])
    lines = [
        f"shard set   {out}",
        f"recordings  {info['recordings']} ({info['hours']:.2f} h), {len(info['classes'])} classes",
        f"segments    {info['samples']} of {info['shape'][0]} x {info['shape'][1]}",
        f"shards      {len(info['shards'])}, {size / 1e6:.1f} MB",
    ]
    if info["rejected"]:
        lines.append(f"rejected    {info['rejected']}, listed in {out / 'rejected.csv'}")
    return "\n".join([*lines, *describe(info["shortcuts"])])
