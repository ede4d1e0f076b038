"""Audio folder in, shard set out: resumable, and byte for byte the same however it was done."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic

from shards.dataset import Totals, write_dataset
from shards.errors import UserError
from shards.index import open_set, shard_name, write_atomic
from shards.notes import Notes, load
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
from shards.progress import Progress
from shards.recording import Recording, Reject
from shards.summary import summary
from shards.table import locate, own_columns, read_table
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
    label_from: str | None = None,
    group_from: str | None = None,
    fold_from: str | None = None,
    split_from: str | None = None,
    path_from: str | None = None,
    audio_root: str | None = None,
    protocol_columns: str | None = None,
    strict: bool = False,
    seed: int = 0,
    shard_size: str = "256MB",
    workers: int | None = None,
    overwrite: bool = False,
) -> str:
    """Turn a folder of audio, one sub-folder a class, or a table of recordings into a shard set.

    sample_rate, fmin, fmax in Hz (fmax: half the sample rate); n_fft, hop_length in samples;
    overlap is a share of a segment. --folds=5 is the default unless --split=0.7,0.15,0.15,
    --fold_from or --split_from is given. The *_from flags are regular expressions searched in the
    file name (in the path below AUDIO if they have a "/"): what names a recording's label, its
    group (speaker, source clip), fold or part. A build that was stopped goes on where it was: start
    it again.

    AUDIO may be a .csv, .tsv or .jsonl file with the columns path, label, group, fold, split, and
    start, end in seconds for pieces of long files; or a protocol, words between spaces that are
    named by --protocol_columns. Paths are relative to --audio_root (the file's folder). There the
    *_from flags name columns too, as --group_from=speaker does. Several labels are `a;b`. Rows
    without their file are listed in rejected.csv; --strict stops at them.

    Returns:
        What was built, in a few lines.

    Raises:
        UserError: words, audio or an existing OUT that cannot be built from or into.
    """
    words = dict(locals())
    for name in ("audio", "out", "workers", "overwrite"):
        del words[name]
    for name in ("path_from", "audio_root", "protocol_columns", "strict"):
        del words[name]  # they decide which recordings there are, and the manifest says which
    began = monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers}: has to be at least 1")
    folder = Path(out)
    root, file = locate(audio, audio_root)
    check_places(Path(audio), folder)
    table = read_table(file, path_from, protocol_columns) if file else None
    settings = settle(words | own_columns(table, words) if table else words)
    recipe = make_recipe(root, settings)
    there = None if overwrite else existing(folder)
    if there:
        check_settings(folder, there, settings)
    check_contents(folder)
    plan = make_plan(recipe, folder, settings, table, strict)
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
    took = monotonic() - began
    rate = f"{made} segments in {took:.1f} s, {made / took:.0f} a second"
    return f"{summary(built)}\ntime        {rate}"


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
    workshop = plan.out / BESIDE
    if overwrite or not (workshop / "plan.json").exists():  # what a killed clear() left goes too
        clear(plan.out)
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
    pieces = [plan.recordings[place].piece for place in places]
    done, made = len(plan.recordings) - len(places), 0
    if done:
        logger.info("going on: %d of %d recordings are done", done, len(plan.recordings))
    outcomes = ordered(plan.recipe.extract, pieces, max(1, min(workers, len(pieces))))
    with closing(outcomes), Progress("build", len(plan.recordings), done) as progress:
        for shard in todo:
            run = plan.shards[shard]
            work = paired(plan.recordings[run.start : run.stop], outcomes, progress)
            file, notes = plan.out / shard_name(shard), notes_file(plan, shard)
            written = write_shard(file, notes, shard, run.start, work, plan.numbers)
            made += len(written.rows)
    return made


def paired(
    recordings: Iterable[Recording], outcomes: Iterator[Outcome], progress: Progress
) -> Iterator[tuple[Recording, Outcome]]:
    """Each recording with what became of it, as the progress counts."""
    for recording in recordings:
        outcome = next(outcomes)
        progress.update(recording.seconds)
        yield recording, outcome


def finish(plan: Plan) -> None:
    """Join the notes into the final files, and put the workshop away."""

    def notes() -> Iterator[Notes]:
        return (load(notes_file(plan, n)) for n in range(len(plan.shards)))

    totals = Totals(plan, notes)
    try:
        check_left(totals.classes, totals.rejected)
    except UserError:
        clear(plan.out)
        raise
    write_dataset(plan, totals, notes)
    shutil.rmtree(plan.out / BESIDE)
