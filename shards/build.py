"""Audio folder in, shard set out: resumable, and byte for byte the same however it was done."""

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import Any

from shards import workshop
from shards.balance import Balance
from shards.chart import balance_png
from shards.copies import without_leaks
from shards.crew import dismiss, kept
from shards.duplicates import WARNED_UP_TO, Prints, find_copies, noted_prints, warn
from shards.errors import UserError
from shards.index import open_set, shard_name
from shards.merge import finish
from shards.output import check_places, errors_named, locked
from shards.part import Part, held, parse_part, part_done
from shards.plan import Plan, make_plan, make_recipe, settle
from shards.process import rare_collections
from shards.progress import Progress
from shards.recording import Recording, Reject, runs_of
from shards.remote import is_url
from shards.root import as_root, tidied
from shards.summary import summary
from shards.table import locate, own_columns, read_table
from shards.upload import build_there
from shards.workers import available, ordered, warm_up
from shards.write import Packed, packing, rejection, sample_bytes, write_shard

logger = logging.getLogger(__name__)

#: Flags that decide no byte, or only which recordings there are: the manifest says which.
BESIDE_SETTINGS = (
    "audio", "out", "workers", "part", "append", "file_timeout", "overwrite", "stage",
    "path_from", "audio_root", "protocol_columns", "strict",
)  # fmt: skip


@tidied()
@rare_collections()
@kept()
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
    device: str = "cpu",
    min_seconds: float = 0.0,
    pad: str = "silence",
    tail: str = "pad",
    trim_silence: float | None = None,
    highpass: float | None = None,
    loudness: float | None = None,
    peak: float | None = None,
    folds: int | None = None,
    split: str | None = None,
    label_from: str | None = None,
    group_from: str | None = None,
    fold_from: str | None = None,
    split_from: str | None = None,
    attack_from: str | None = None,
    path_from: str | None = None,
    audio_root: str | None = None,
    protocol_columns: str | None = None,
    strict: bool = False,
    on_duplicate: str = "warn",
    seed: int = 0,
    shard_size: str = "256MB",
    workers: int | None = None,
    part: str | None = None,
    append: bool = False,
    file_timeout: float = 300.0,
    overwrite: bool = False,
    stage: str | None = None,
) -> str:
    """Turn a folder of audio, one sub-folder a class, or a table of recordings into a shard set.

    sample_rate, fmin, fmax in Hz (fmax: half the sample rate); n_fft, hop_length in samples;
    overlap is a share of a segment. --folds=5 is the default unless --split=0.7,0.15,0.15,
    --fold_from or --split_from is given. The *_from flags are regular expressions searched in the
    file name (in the path below AUDIO if they have a "/"): what names a recording's label, its
    group (speaker, source clip), attack (what faked it), fold or part. --device=cuda computes the
    spectrograms on a GPU. A build that was stopped goes on where it was: start it again.

    --on_duplicate=group puts recordings that are copies of each other into one group, drop keeps
    the first of them, warn says afterwards where copies stand on two sides.

    A recording shorter than a segment is filled up by --pad=silence|repeat|reflect, or rejected
    below min_seconds. So is the last, partial segment of any other, if it adds 10 % of one
    (--tail=drop: never). Off by default, done in this order: highpass in Hz (Butterworth, order 4);
    trim_silence at both ends, in dB below the loudest part; loudness in LUFS (ITU-R BS.1770, at
    most 30 dB up or down, the peak at most 1) or peak in dBFS. A file that takes over file_timeout
    seconds (0: no limit) to decode, or to transform, or that kills its decoder, is rejected.

    --shard_size is about what a tar holds, --workers how many processes work at it, by default one
    a core. --overwrite replaces a set that has other settings.

    AUDIO may be a .csv, .tsv or .jsonl file with the columns path, label, group, attack, fold,
    split, and start, end in seconds for pieces of long files; or a protocol, words between spaces
    named by --protocol_columns. Paths are relative to --audio_root (the file's folder). There the
    *_from flags name columns too, as --group_from=speaker does. Several labels are `a;b`. Rows
    without their file are listed in rejected.csv; --strict stops at them.

    AUDIO, a table, the paths in it and OUT may be addresses such as s3://bucket/audio; --stage is
    where a set is built that goes to an address, by default a folder in the cache.

    --part=I/N makes every Nth shard, for arrays of tasks on one OUT or on folders that are copied
    together, .build included; `merge OUT` then finishes the set, and the bytes are those of one
    build. --append adds files that AUDIO has gained to a finished set, with the same flags: shards
    behind the old ones, which stay as they are, as do all folds. A file that was rejected once is
    not tried again under its name. That the content of a file changed, and neither its length nor
    its format, a second start does not see; `verify --audio=AUDIO` does.

    Returns:
        What was built, in a few lines.

    Raises:
        UserError: words, audio or an existing OUT that cannot be built from or into.
    """
    asked = dict(locals())
    if is_url(out):
        return build_there(build, asked)
    if out.startswith(("s3:/", "hf:/")):
        raise UserError(f"{out}: an address has two slashes behind its colon; a folder is ./{out}")
    if stage is not None:
        raise UserError(f"--stage={stage}: for sets at an address, and {out} is a folder")
    words = {name: value for name, value in asked.items() if name not in BESIDE_SETTINGS}
    began = monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers}: has to be at least 1")
    if not file_timeout >= 0:
        raise UserError(f"--file_timeout={file_timeout:g}: has to be 0 (no limit) or more seconds")
    if overwrite and (part is not None or append):
        raise UserError(f"--overwrite and --{'append' if append else 'part'} exclude each other")
    if append and on_duplicate != "warn":
        raise UserError(
            f"--append with --on_duplicate={on_duplicate}: copies of what is there would move it; "
            "build the whole set anew, with --overwrite or into another folder"
        )
    share = parse_part(part) if part is not None else None
    folder = Path(out)
    root, file = locate(audio, audio_root)
    check_places(as_root(audio), folder)
    for flag, value in (("path_from", path_from), ("protocol_columns", protocol_columns)):
        if file is None and value is not None:
            raise UserError(f"--{flag}={value}: for tables only, and {audio} is a folder")
    table = read_table(file, path_from, protocol_columns) if file else None
    settings = settle(words | own_columns(table, words) if table else words)
    warm_up()
    recipe = make_recipe(root, settings)
    workshop.reopen(folder, settings, overwrite)
    if append and not (folder / "dataset.json").exists():
        raise UserError(f"{out}: no finished shard set to append to; build it without --append")
    if folder.exists():
        with errors_named(folder), locked(folder, shared=share is not None):
            pass  # a second builder need not read a million headers before it hears that it is one
    hear = partial(without_leaks, recipe=recipe, rule=on_duplicate, workers=workers or available())
    plan = make_plan(
        recipe,
        folder,
        settings,
        table,
        strict,
        open_set(folder) if append else None,
        partial(hear, timeout=file_timeout) if on_duplicate != "warn" else None,
        file_timeout,
    )
    plan = replace(plan, command=typed(audio, out, asked))
    if not overwrite and workshop.is_finished(plan):
        return f"{folder}: complete already; nothing to do\n{summary(open_set(folder))}"
    with errors_named(folder), held(folder, share):
        if not overwrite and workshop.is_complete(plan):
            raise UserError(f"{folder}: another build has just finished it; nothing to do")
        workshop.begin(plan, share.folder(folder) if share else None, overwrite)
        with ThreadPoolExecutor(1) as beside:
            made, prints = write_shards(plan, share, workers or available(), file_timeout, beside)
            if share:
                return part_done(plan, share)
            plan, table = replace(plan, recordings=[]), None  # room for their notes
            pairs = beside.submit(find_copies, prints) if prints else None
            finish(plan)
    built = open_set(folder)
    warned = warn(built, pairs.result() if pairs else None)
    took = monotonic() - began
    digits = 1 if made < 10 * took else 0
    rate = f"{made} segments in {took:.1f} s, {made / took:.{digits}f} a second"
    return "\n".join([summary(built), f"time        {rate}", *warned])


def draw_ahead(plan: Plan) -> None:
    """Have the picture at hand that a plan leads to if no recording is other than its header."""
    rest = {"segments": 0, "group": ""}  # are not in it
    told = (r._asdict() | rest | {"seconds": r.seconds} for r in plan.recordings)
    balance_png(Balance(plan.classes, plan.folds, told))


def write_shards(
    plan: Plan, share: Part | None, workers: int, file_timeout: float, beside: Executor
) -> tuple[int, Prints | None]:
    """Write the shards (of a part) that are missing; how many samples that made, and their prints
    if these are all there are."""
    mine = [shard for shard in plan.shards if share is None or share.has(shard)]
    todo = [shard for shard in mine if not workshop.is_written(plan.out, shard)]
    total = sum(len(plan.shards[shard]) for shard in mine)
    first = plan.first_place
    items = [(first + n, plan.recordings[n]) for shard in todo for n in plan.shards[shard]]
    done, made, fresh = total - len(items), 0, []
    if done:
        logger.info("going on: %d of %d recordings are done", done, total)
    workers = max(1, min(workers, len(items)))
    room = WARNED_UP_TO * sample_bytes(plan.recipe.shape)
    is_small = len(plan.shards) * plan.settings["shard_size"] <= room
    work = packing(plan.recipe, plan.numbers)
    runs = runs_of(items, lambda item: item[1], workers)
    outcomes = ordered(work, runs, workers, timeout=file_timeout, lost=lost, lends=True)
    with closing(outcomes), Progress("build", total, done) as progress:
        results: Iterator[Packed | Reject] = outcomes
        if todo and share is None and plan.base is None:
            results = chain([next(outcomes)], outcomes)  # all workers are busy: it holds up none
            beside.submit(draw_ahead, plan)
        for shard in todo:
            run = plan.shards[shard]
            some = counted(plan.recordings[run.start : run.stop], results, progress)
            file, notes = plan.out / shard_name(shard), workshop.notes_file(plan.out, shard)
            written = write_shard(file, notes, shard, some)
            made += len(written.rows)
            if is_small:  # 5 kB of grains a segment
                fresh.append(written)
    dismiss()
    whole = plan.base is None and len(fresh) == len(plan.shards) and made <= WARNED_UP_TO
    return made, noted_prints(fresh, plan.settings["segment_seconds"]) if whole else None


def counted(
    recordings: Iterable[Recording], outcomes: Iterator[Packed | Reject], progress: Progress
) -> Iterator[Packed | Reject]:
    """What became of each recording, as the progress counts."""
    for recording in recordings:
        outcome = next(outcomes)
        progress.update(recording.seconds)
        yield outcome


def lost(item: tuple[int, Recording], reason: str) -> Reject:
    """What becomes of a recording whose process did not survive it."""
    return rejection(item[1], reason)


def typed(audio: str, out: str, words: Mapping[str, Any]) -> str:
    """The command line that asks for a build, flags at their defaults left out."""
    own = ("audio", "out", "workers", "part", "file_timeout")
    words = {n: x for n, x in words.items() if n not in own}
    defaults = {name: p.default for name, p in inspect.signature(build).parameters.items()}
    flags = [f"--{n}={quote(str(x))}" for n, x in words.items() if x != defaults[n]]
    return " ".join(["python -m shards build", quote(audio), quote(out), *flags])
