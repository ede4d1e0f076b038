"""A labelled audio folder made from a seed: `environment`, `deepfake`, `genre` or `drone`.

A kind is a module beside this one: `plan(seed, per_class, seconds)` lists its recordings,
`render(take, seed)` makes one of them, (n, channels) at RATE; PER_CLASS and SECONDS are defaults,
BUILD the words that a recipe's set is built by.
"""

import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from shards.command import nearest
from shards.durable import csv_bytes
from shards.errors import UserError
from shards.index import write_atomic
from shards.sources.takes import Take, store

KINDS = ("environment", "deepfake", "genre", "drone")
MARKER, MANIFEST = ".demo.json", "manifest.csv"
README = """\
A demonstration set made by `python -m shards demo` (seed {seed}, {per_class} recordings a class).

"""


def find(kind: str) -> Any:
    """The module of a kind."""
    if kind not in KINDS:
        raise UserError(f"--kind={kind}: unknown; {nearest(kind, KINDS)}")
    return import_module(f"shards.sources.{kind}")


def record(wave: np.ndarray, rate: int, take: Take, out: Path) -> None:
    """Write one recording, 16 bit, at its own rate."""
    import soxr

    wave = soxr.resample(wave, rate, take.sample_rate, quality="HQ")
    wave *= min(1, 0.99 / np.abs(wave).max())
    store(out / take.name, wave, take.sample_rate)


def manifest(takes: Sequence[Take]) -> bytes:
    """The table of a kind whose recordings have given parts."""
    names = ("path", "label", "group", "attack", "split")
    rows = ((take.name, take.label, take.group, take.attack, take.split) for take in takes)
    return csv_bytes([names, *rows])


def synthesize(
    out: str | os.PathLike[str],
    seed: int = 0,
    per_class: int | None = None,
    *,
    kind: str = "environment",
    seconds: float | None = None,
) -> int:
    """Write a demonstration set: `per_class` recordings of each class, each of `seconds`.

    The same seed gives the same bytes (with the same numpy, scipy, soxr and libsndfile). A kind has
    its own defaults; by default lengths vary. Of `environment` one more file is no audio and one is
    silent; `deepfake` has its parts in manifest.csv. A folder that holds this very set is left
    alone, one that was interrupted is finished.

    Returns:
        The number of audio files, the bad ones included.

    Raises:
        UserError: `out` holds anything else, no such kind, or a number that is out of range.
    """
    chosen = find(kind)
    count = chosen.PER_CLASS if per_class is None else per_class
    span = chosen.SECONDS if seconds is None else (seconds, seconds)
    if seed < 0 or count < 1:
        raise UserError(f"--seed={seed} --per_class={count}: at least 0, and at least 1")
    if not 0.5 <= span[0] <= 600:
        raise UserError(f"--seconds={span[0]:g}: at least 0.5 and at most 600")
    out, planned = Path(out), chosen.plan(seed, count, span)
    asked = {"seed": seed, "per_class": count}
    told: dict[str, Any] = {} if kind == "environment" else {"kind": kind}
    told |= {} if seconds is None else {"seconds": seconds}
    notes = {
        "README.txt": (README.format(**asked) + chosen.ABOUT).encode(),
        MARKER: json.dumps(asked | told).encode(),
    }
    if any(take.split for take in planned):
        notes[MANIFEST] = manifest(planned)
    extras = [chosen.BROKEN, chosen.SILENT] if hasattr(chosen, "BROKEN") else []
    contents = [*extras, *(take.name for take in planned)]
    if is_finished(out, notes, contents):
        return len(contents)
    for folder in {(out / take.name).parent for take in planned}:
        folder.mkdir(parents=True, exist_ok=True)
    # First the README: by it a second start knows its own work.
    for name in [name for name in notes if name != MARKER]:
        (out / name).write_bytes(notes[name])
    for take in planned:
        record(chosen.render(take, seed), chosen.RATE, take, out)
    if extras:
        chosen.write_extras(seed, out)
    write_atomic(out / MARKER, notes[MARKER])
    return len(contents)


def is_finished(out: Path, notes: dict[str, bytes], contents: Sequence[str]) -> bool:
    """Whether `out` holds the whole set; a UserError if it holds anything but (a part of) it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; give a new folder")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return False
    ours = all((out / name).read_bytes() == data for name, data in notes.items() if name in found)
    strangers = sorted(found - {*contents, *notes})
    if strangers or not ours or "README.txt" not in found:
        what = f" ({strangers[0]})" if strangers else ""
        raise UserError(f"{out}: not empty, and not this demo set{what}; give a new folder")
    return found == {*contents, *notes}
