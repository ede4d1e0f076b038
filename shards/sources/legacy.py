"""A shard set of the spectrograms that older scripts left, without their audio.

Shapes: `M` mel bands, `T` frames.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from shards.acoustics import acoustics
from shards.errors import UserError
from shards.index import open_set, shard_name
from shards.labels import classes_of, label_sets
from shards.manifest import compiled, values
from shards.mel import CONSTANTS, FLOOR, FLOOR_DB, MelSettings
from shards.merge import finish
from shards.output import check_places, errors_named, locked
from shards.plan import DEFAULT_FOLDS, Plan, parse_size
from shards.progress import Progress
from shards.recipe import Features, Recipe, band_sums
from shards.recording import Recording, digest, place
from shards.sources.clips import Clip
from shards.sources.survey import Survey, look, read_array, read_clips, told
from shards.split import dealt
from shards.summary import summary
from shards.workshop import begin, is_finished, notes_file, reopen
from shards.write import pack, sample_bytes, write_shard


@dataclass(frozen=True, kw_only=True)
class OldMel:
    """What is known of an old set's mel settings; Hz and samples, null where nobody said."""

    sample_rate: int | None
    n_fft: int | None
    hop_length: int | None
    n_mels: int
    fmin: float | None
    fmax: float | None
    reference: float | str | None
    floor: float | None

    def to_dict(self) -> dict[str, Any]:
        """The keys of `MelSettings.to_dict`."""
        return {**dict.fromkeys(CONSTANTS), "unit": "dB", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class OldRecipe:
    """What stands in a plan where a build has its recipe; no audio, so no lengths in samples."""

    audio: Path
    mel: OldMel
    shape: tuple[int, int]
    length: None = None
    hop: None = None
    pad: None = None
    tail: None = None


def convert(
    old: str,
    out: str,
    *,
    sample_rate: int | None = None,
    n_fft: int | None = None,
    hop_length: int | None = None,
    fmin: float | None = None,
    fmax: float | None = None,
    segment_seconds: float | None = None,
    frames: int | None = None,
    scale: str | None = None,
    folds: int | None = None,
    group_from: str | None = None,
    seed: int = 0,
    shard_size: str = "256MB",
    overwrite: bool = False,
) -> str:
    """Make a shard set of old spectrograms: metadata.csv, train/val/test.csv or features.pkl.

    OLD holds .npy, .npz or .pkl files of (M, T), (1, M, T) or (M, T, 1) and metadata.csv (filename,
    label and perhaps split, fold) or train.csv, val.csv, test.csv; or features.pkl, labels.pkl and
    perhaps folds.pkl, class_mapping.pkl. The mel settings cannot be read off an array: say them, or
    they stay unknown (null). --frames crops, or pads with the floor; --scale=db or power says what
    the values are. Split and folds are the old set's; without any --folds=5.

    Returns:
        What was made, in a few lines.

    Raises:
        UserError: no such set, arrays of several shapes, values that are no dB, an OUT in use.
    """
    settings: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("out", "overwrite")}
    check_numbers(settings)
    folder, source = Path(out), Path(settings.pop("old"))
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the one that holds the old set")
    check_places(source, folder)
    clips, kind = read_clips(source)
    survey = look(clips, frames)
    settings |= {
        "convert": kind,
        "scale": survey.scale(scale),
        "shard_size": parse_size(shard_size),
        "overlap": None,
        "split": None,
        "label_from": f"{kind}: label",
        "split_from": f"{kind}: split" if clips[0].split else None,
        "fold_from": f"{kind}: fold" if clips[0].fold else None,
    }
    if not clips[0].split and not clips[0].fold and folds is None:
        settings["folds"] = DEFAULT_FOLDS
    reopen(folder, settings, overwrite)
    plan = make_plan(source, folder, clips, survey, settings)
    if not overwrite and is_finished(plan):
        return f"{folder}: complete already; nothing to do\n{summary(open_set(folder))}"
    with errors_named(folder), locked(folder):
        begin(plan, None, overwrite)
        write_shards(plan, clips, survey)
        finish(plan)
    return f"{summary(open_set(folder))}\nvalues      {told(survey, settings['scale'])}"


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Raise a UserError for a mel setting, or another number, that cannot be."""
    names = [field.name for field in fields(MelSettings) if field.name != "n_mels"]
    for name in (*names, "segment_seconds", "frames"):
        value = settings[name]
        if value is not None and not (
            math.isfinite(value) and (value > 0 or (name == "fmin" and value == 0))
        ):
            raise UserError(f"--{name}={value}: has to be above 0")
    if settings["folds"] is not None and settings["folds"] < 2:
        raise UserError(f"--folds={settings['folds']}: cross-validation needs at least 2")
    if not 0 <= settings["seed"] < 2**32:
        raise UserError(f"--seed={settings['seed']}: has to lie between 0 and {2**32 - 1}")


def make_plan(
    old: Path, out: Path, clips: Sequence[Clip], survey: Survey, settings: Mapping[str, Any]
) -> Plan:
    """Deal out folds, parts and shards, as a build does."""
    recordings = [recording(clip, survey, settings) for clip in clips]
    if settings["group_from"] is not None:
        pattern = compiled("group_from", settings["group_from"])
        groups = values("group_from", pattern, [r.path for r in recordings])
        recordings = [r._replace(group=g) for r, g in zip(recordings, groups, strict=True)]
    seed, paths = settings["seed"], {reject.path for reject in survey.rejected}
    recordings = [r for r in recordings if r.path not in paths]
    recordings.sort(key=lambda r: place(r.path, seed))
    asked = None if recordings[0].fold else settings["folds"]
    recordings, folds, method = dealt(recordings, asked, None, seed)
    classes = classes_of(r.label for r in recordings)
    power = settings["scale"] == "power"
    mel = OldMel(
        n_mels=survey.shape[0],
        reference=1.0 if power else "clip maximum" if survey.relative else None,
        floor=FLOOR if power else None,
        **{f.name: settings[f.name] for f in fields(MelSettings) if f.name != "n_mels"},
    )
    each, n = max(1, settings["shard_size"] // sample_bytes(survey.shape)), len(recordings)
    runs = [range(first, min(first + each, n)) for first in range(0, n, each)]
    return Plan(
        recipe=cast(Recipe, OldRecipe(audio=old, mel=mel, shape=survey.shape)),
        out=out,
        recordings=recordings,
        rejected=survey.rejected,
        classes=classes,
        label_sets=label_sets((r.label for r in recordings), classes),
        folds=folds,
        method=method,
        shards=dict(enumerate(runs)),
        settings=settings,
        manifest=digest(recordings, survey.rejected),
    )


def recording(clip: Clip, survey: Survey, settings: Mapping[str, Any]) -> Recording:
    """A clip as a recording of its own; as long as its frames, or 0 s if nobody knows."""
    rate, hop = settings["sample_rate"], settings["hop_length"]
    seconds = settings["segment_seconds"]
    if seconds is None:
        seconds = survey.shape[1] * hop / rate if rate and hop else 0.0
    frames = round(seconds * (rate or 1000))
    return Recording(
        path=clip.path,
        label=clip.label,
        group=clip.path,
        fold=clip.fold,
        split=clip.split,
        frames=frames,
        sample_rate=rate or 1000,
        channels=1,
    )


def write_shards(plan: Plan, clips: Sequence[Clip], survey: Survey) -> None:
    """Write every shard; of its recordings is null what only their audio would tell."""
    by_path = {clip.path: clip for clip in clips}
    floor = survey.low if plan.settings["scale"] == "db" else FLOOR_DB
    unknown = {"sample_rate": plan.settings["sample_rate"], "channels": None}
    unknown |= {"clipped": None, "dc": None}
    with Progress("convert", len(plan.recordings)) as progress:
        for shard, run in plan.shards.items():
            part = plan.recordings[run.start : run.stop]
            work = (
                pack(r, place, features(by_path[r.path], r, plan, floor), plan.numbers, unknown)
                for place, r in enumerate(progress.through(part), run.start)
            )
            write_shard(plan.out / shard_name(shard), notes_file(plan.out, shard), shard, work)


def features(clip: Clip, recording: Recording, plan: Plan, floor: float) -> Features:
    """A clip as a shard stores it; its checksum is that of the old array's bytes."""
    import xxhash

    array = read_array(clip)
    if plan.settings["scale"] == "power":
        array = 10 * np.log10(np.maximum(array, FLOOR))
    n_mels, frames = plan.recipe.shape
    stored = np.full((1, n_mels, frames), floor, "<f2")
    length = min(frames, array.shape[1])
    stored[0, :, :length] = array[:, :length]
    exact = stored.astype(np.float32)
    return Features(
        values=stored,
        starts=[0.0],
        xxh3=[xxhash.xxh3_64_intdigest(stored.tobytes())],
        sums=band_sums(exact),
        grains=np.empty((0, 0, 0), np.int8),
        acoustics=acoustics(exact),
        xxh128=xxhash.xxh3_128_hexdigest(clip.load().tobytes()),
        seconds=recording.seconds,
        clipped=0.0,
        dc=0.0,
    )
