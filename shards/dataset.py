"""The files that stand beside the tars: what the notes of all shards add up to.

Shapes: `N` samples, `F` folds, `K` classes, `M` mel bands.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from shards import __version__
from shards.balance import Balance
from shards.chart import balance_png, drawn
from shards.durable import csv_bytes, write
from shards.index import (
    FILES,
    FORMAT,
    ROW,
    SPLITS,
    ShardSet,
    file_entry,
    shard_name,
    stats_shape,
)
from shards.notes import Notes
from shards.plan import Plan
from shards.recording import place
from shards.seal import seal
from shards.shortcuts import find_shortcuts
from shards.write import npy_header

#: From where on a recording counts as clipped, in samples at full scale, or as off zero.
CLIPPED, OFF_ZERO = 1e-3, 1e-2

Line = dict[str, Any]
AllNotes = Callable[[], Iterator[Notes]]  # read anew each time: all at once need not fit in memory


class Totals:
    """What the notes of the shards add up to, apart from what is one row or line a sample."""

    def __init__(self, plan: Plan, notes: AllNotes) -> None:
        mel = plan.recipe.mel.n_mels
        self.balance = Balance(plan.classes, plan.folds)
        self.stats = np.zeros(stats_shape(len(plan.folds), len(plan.classes), mel), np.float64)
        self.rejected = list(plan.rejected)
        self.shards: list[Line] = []
        self.faults = {"clipped": 0, "dc": 0}
        for part in notes():
            self.add(part)

    def add(self, notes: Notes) -> None:
        """Count a shard."""
        for line in notes.recordings:
            self.balance.add(line)
            self.faults["clipped"] += (line["clipped"] or 0) > CLIPPED  # null: converted
            self.faults["dc"] += abs(line["dc"] or 0) > OFF_ZERO
        for cell, sums in notes.sums.items():
            self.stats[cell] += sums
        self.rejected += notes.rejected
        entry = {"name": shard_name(len(self.shards)), "samples": len(notes.rows)}
        self.shards.append(entry | {"bytes": notes.size, "sha256": notes.sha256})

    @property
    def classes(self) -> set[str]:
        """The classes that have a recording."""
        return {name for name, *_ in self.balance.amounts if name is not None}


def write_dataset(plan: Plan, totals: Totals, notes: AllNotes) -> None:
    """Write everything but the tars into a folder that nobody reads yet."""
    samples = sum(entry["samples"] for entry in totals.shards)
    write(plan.out / "index.npy", index_npy(samples, notes()))
    stats = npy_header(totals.stats.dtype, totals.stats.shape) + totals.stats.tobytes()
    write(plan.out / "stats.npy", stats)
    lines = (f"{line}\n".encode() for part in notes() for line in part.lines)
    write(plan.out / "recordings.jsonl", lines)
    rejected = sorted(totals.rejected, key=lambda one: place(one.path, plan.settings["seed"]))
    table = csv_bytes([("path", "reason"), *((one.path, one.reason) for one in rejected)])
    write(plan.out / "rejected.csv", table)
    balance = json.dumps(totals.balance.records(), indent=2).encode() + b"\n"
    write(plan.out / "balance.json", balance)
    write(plan.out / "balance.png", balance_png(totals.balance))
    drawn.cache_clear()  # what was drawn ahead has served
    info = dataset(plan, totals, samples)
    info["shortcuts"] = find_shortcuts(ShardSet(plan.out, info))
    write(plan.out / "dataset.json", seal(info))


def index_npy(samples: int, shards: Iterable[Notes]) -> Iterator[bytes]:
    """index.npy, a shard at a time; recordings counted through."""
    yield npy_header(ROW, (samples,))
    recordings = 0
    for notes in shards:
        rows = notes.rows.copy()
        rows["recording"] += recordings
        recordings += len(notes.lines)
        yield rows.tobytes()


def counts(balance: Balance, key: str, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Recordings and segments for each name; a recording of several classes counts in each."""
    amounts = {name: balance.total(**{key: name}) for name in names}
    return {
        name: {"recordings": amount.recordings, "segments": amount.segments}
        for name, amount in amounts.items()
    }


def dataset(plan: Plan, totals: Totals, samples: int) -> Line:
    """What dataset.json says; "label_sets" only where a recording has several classes."""
    recipe, settings = plan.recipe, plan.settings
    balance, everything = totals.balance, totals.balance.total()
    several = any(len(some) > 1 for some in plan.label_sets)
    return {
        "format": FORMAT,
        "wavefold": __version__,
        "classes": plan.classes,
        **({"label_sets": plan.label_sets} if several else {}),
        "folds": plan.folds,
        "mel": recipe.mel.to_dict(),
        "segment": {
            "seconds": settings["segment_seconds"],
            "overlap": settings["overlap"],
            "samples": recipe.length,
            "hop_samples": recipe.hop,
            "pad": recipe.pad,
            "tail": recipe.tail,
        },
        "dtype": "float16",
        "unit": "dB",
        "shape": list(recipe.shape),
        "samples": samples,
        "recordings": everything.recordings,
        "groups": len(everything.groups),
        "rejected": len(totals.rejected),
        "faults": totals.faults,
        "hours": everything.seconds / 3600,
        "counts": {
            "class": counts(balance, "name", plan.classes),
            "split": counts(balance, "split", SPLITS),
            "fold": counts(balance, "fold", plan.folds),
        },
        "split": {
            "method": plan.method,
            "seed": settings["seed"],
            "folds": settings["folds"],
            "parts": settings["split"],
            **{f"{x}_from": settings[f"{x}_from"] for x in ("label", "fold", "group", "split")},
        },
        "settings": dict(settings),
        "manifest": plan.manifest,
        "appended": plan.appended,
        "shards": totals.shards,
        "files": {name: file_entry(plan.out / name) for name in FILES},
    }
