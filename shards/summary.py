"""What people read: what a scan found before any work starts, and what a shard set holds."""

import csv
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from shards import shortcuts
from shards.index import ShardSet
from shards.labels import display_name, names, natural
from shards.manifest import Scan

CLASSES_SHOWN = 20

DONE = {
    "highpass": "high-passed at {:g} Hz",
    "trim_silence": "silence {:g} dB below the loudest part cut off both ends",
    "loudness": "brought to {:g} LUFS",
    "peak": "brought to a peak of {:g} dBFS",
}
PADDED = {
    "silence": "padded with silence",
    "repeat": "filled up by repetition",
    "reflect": "filled up by reflection",
}
FILLED = {"pad": "partial ones {}", "drop": "recordings shorter than that {}, other rests dropped"}


def describe(found: Scan) -> str:
    """What was understood, for people, before any work starts."""
    recordings = found.recordings
    hours = sum(r.seconds for r in recordings) / 3600
    classes = Counter(name for r in recordings for name in names(r.label))
    lines = [f"recordings   {len(recordings)} ({hours:.2f} h) in {len(classes)} classes"]
    for label in sorted(classes, key=natural)[:CLASSES_SHOWN]:
        lines.append(f"  {classes[label]:>8}   {display_name(label)}")
    if len(classes) > CLASSES_SHOWN:
        lines.append(f"  {'...':>8}   and {len(classes) - CLASSES_SHOWN} more")
    files = len({r.path for r in recordings})
    if files < len(recordings):
        lines.append(f"files        {files}, cut into pieces by the table")
    lines.append(f"groups       {len({r.group for r in recordings})}")
    lines.append(f"sample rate  {counted(f'{r.sample_rate} Hz' for r in recordings)}")
    lines.append(f"channels     {counted(str(r.channels) for r in recordings)}")
    for name in ("fold", "split"):
        told = [getattr(r, name) for r in recordings if getattr(r, name) is not None]
        if told:
            lines.append(f"{name:<13}{counted(told)}")
    if found.rejected:
        lines.append(f"unusable     {len(found.rejected)}, such as {found.rejected[0].path}")
    if found.passed_by:
        kinds = counted(PurePosixPath(p).suffix or "no suffix" for p in found.passed_by)
        lines.append(f"passed by    {kinds}: no audio in a class folder")
    return "\n".join(lines)


def counted(things: Iterable[str]) -> str:
    """`1 (20), 2 (19)`: what there is and how often."""
    counts = Counter(things)
    return ", ".join(f"{thing} ({counts[thing]})" for thing in sorted(counts, key=natural))


def summary(built: ShardSet) -> str:
    """What a shard set holds, in a few lines, and the sentences that a paper needs of it."""
    info = built.info
    size = sum(shard["bytes"] for shard in info["shards"])
    lines = [
        f"shard set   {built}",
        f"recordings  {info['recordings']} ({info['hours']:.2f} h), {len(info['classes'])} classes",
        f"segments    {info['samples']} of {info['shape'][0]} x {info['shape'][1]}",
        f"shards      {len(info['shards'])}, {size / 1e6:.1f} MB",
    ]
    if info["faults"]["clipped"]:
        clipped = info["faults"]["clipped"]
        lines.append(f"clipped     {clipped} recordings, over 0.1 % of their samples")
    if info["faults"]["dc"]:
        lines.append(f"DC offset   {info['faults']['dc']} recordings, over 1 % of full scale")
    if info["rejected"]:
        lines.append(f"rejected    {info['rejected']}, listed in {built}/rejected.csv")
    lines += shortcuts.describe(info.get("shortcuts", ()))
    return "\n".join([*lines, "", textwrap.fill(in_words(built), 100)])


def rejections(built: ShardSet) -> str:
    """Why files were rejected: `silent (2)`, without what is said of a file alone."""
    with open(built.file("rejected.csv"), encoding="utf-8", newline="") as file:
        return counted(kind(row["reason"]) for row in csv.DictReader(file))


def kind(reason: str) -> str:
    """`not finite: 3 NaN or Inf samples` as `not finite`."""
    return re.split(r"[:;]| \(| at \d|, such as |(?<=^a copy) of ", reason)[0]


def known(value: float | None) -> str:
    """A number, or that nobody said it: a converted set may lack some."""
    return "unknown" if value is None else f"{value:.10g}"


def in_words(built: ShardSet) -> str:
    """The set and how it was made, as a paper tells it."""
    info = built.info
    mel, cut, split = info["mel"], info["segment"], info["split"]
    overlap = f"an overlap of {100 * cut['overlap']:g} %" if cut["overlap"] else "no overlap"
    rate, old = f"{known(mel['sample_rate'])} Hz", info["settings"].get("convert")
    segments = f"{info['samples']} segments of {known(cut['seconds'])} s"
    window = "window" if mel["window"] is None else f"{mel['window'].title()} window"
    several = ", several a recording," if built.is_multi_label else ""
    sentences = [
        f"{info['recordings']} recordings ({info['hours']:.2f} h) of {len(info['classes'])} "
        f"classes{several} in {info['groups']} groups.",
        f"Converted from {old}: {segments} at {rate}."
        if old
        else f"Mono at {rate}{conditioned(info['settings'])}, cut into {segments} with {overlap}, "
        f"{FILLED[cut['tail']].format(PADDED[cut['pad']])}.",
        f"Log-mel spectrograms in dB: {mel['n_mels']} bands from {known(mel['fmin'])} to "
        f"{known(mel['fmax'])} Hz, {window} of {known(mel['n_fft'])} samples, "
        f"hop of {known(mel['hop_length'])}.",
        f"Dealt out in whole groups: {dealt(split, len(info['folds']))} (seed {split['seed']}).",
        f"Made with Wavefold {info['wavefold']}.",
    ]
    if count := info["rejected"]:
        verb = "was" if count == 1 else "were"
        sentences.insert(1, f"{count} {verb} rejected: {rejections(built)}.")
    return " ".join(sentences)


def conditioned(settings: Mapping[str, Any]) -> str:
    """What was done to a wave before it was cut: `, high-passed at 50 Hz, ...`."""
    asked = {name: words for name, words in DONE.items() if settings[name] is not None}
    told = [words.format(settings[name]) for name, words in asked.items()]
    if settings["min_seconds"]:
        told.insert(0, f"at least {settings['min_seconds']:g} s long")
    return "".join(f", {words}" for words in told)


def dealt(split: Mapping[str, Any], folds: int) -> str:
    """How folds and parts were made, and how many or how large they are."""
    shares = ", ".join(f"{share:g}" for share in split["parts"] or ())
    method = split["method"].replace("folds", f"{folds} folds", 1)
    return method.replace("split by", f"split ({shares}) by")
