"""The files that stand beside the tars: what the notes of all shards add up to.

Shapes: `N` samples, `F` folds, `K` classes, `M` mel bands.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shards import __version__
from shards.index import (
    FILES,
    FORMAT,
    ROW,
    SPLITS,
    ShardSet,
    file_entry,
    shard_name,
    stats_shape,
    write_atomic,
)
from shards.manifest import Reject, place
from shards.notes import Notes
from shards.plan import Plan
from shards.shortcuts import find_shortcuts
from shards.write import npy_bytes

Line = dict[str, Any]


def write_dataset(plan: Plan, shards: Sequence[Notes]) -> None:
    """Write everything but the tars; dataset.json last: a folder that has one is whole."""
    lines = [line for notes in shards for line in notes.recordings]
    rejected = [*plan.rejected, *(reject for notes in shards for reject in notes.rejected)]
    write_atomic(plan.out / "index.npy", npy_bytes(join_rows(shards)))
    write_atomic(plan.out / "stats.npy", npy_bytes(join_sums(plan, shards)))
    write_atomic(
        plan.out / "recordings.jsonl", b"".join(json.dumps(x).encode() + b"\n" for x in lines)
    )
    write_atomic(plan.out / "rejected.csv", rejected_csv(rejected, plan.settings["seed"]))
    write_atomic(plan.out / "balance.json", pretty(balance(plan, lines)))
    info = dataset(plan, shards, lines, len(rejected))
    info["shortcuts"] = find_shortcuts(ShardSet(plan.out, info))
    write_atomic(plan.out / "dataset.json", pretty(info))


def join_rows(shards: Sequence[Notes]) -> np.ndarray:
    """(N,) index rows; recordings counted through."""
    rows = np.empty(sum(len(notes.rows) for notes in shards), ROW)
    first, recordings = 0, 0
    for notes in shards:
        part = rows[first : first + len(notes.rows)]
        part[:] = notes.rows
        part["recording"] += recordings
        first += len(notes.rows)
        recordings += len(notes.recordings)
    return rows


def join_sums(plan: Plan, shards: Sequence[Notes]) -> np.ndarray:
    """(split, F, K, 3, M) float64, added up shard by shard."""
    mel = plan.recipe.mel.n_mels
    stats = np.zeros(stats_shape(len(plan.folds), len(plan.classes), mel), np.float64)
    for notes in shards:
        for cell, sums in notes.sums.items():
            stats[cell] += sums
    return stats


def rejected_csv(rejected: Sequence[Reject], seed: int) -> bytes:
    """path, reason; in the order of the manifest."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Reject._fields)
    for reject in sorted(rejected, key=lambda reject: place(reject.path, seed)):
        table.writerow(reject)
    return text.getvalue().encode("utf-8", "backslashreplace")


def balance(plan: Plan, lines: Iterable[Line]) -> list[Line]:
    """One record for each class, part and fold that has anything: how much there is."""
    cells: dict[tuple[int, int, int], list[Line]] = defaultdict(list)
    for x in lines:
        fold = plan.folds.index(x["fold"]) if plan.folds else 0
        cells[plan.classes.index(x["label"]), SPLITS.index(x["split"]), fold].append(x)
    return [
        {
            "class": plan.classes[label],
            "split": SPLITS[split],
            "fold": plan.folds[fold] if plan.folds else None,
            "recordings": len(cell),
            "groups": len({x["group"] for x in cell}),
            "segments": sum(x["segments"] for x in cell),
            "seconds": sum(x["seconds"] for x in cell),
        }
        for (label, split, fold), cell in sorted(cells.items())
    ]


def counts(lines: Iterable[Line], key: str, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Recordings and segments for each name."""
    table = {name: {"recordings": 0, "segments": 0} for name in names}
    for x in lines:
        table[x[key]]["recordings"] += 1
        table[x[key]]["segments"] += x["segments"]
    return table


def dataset(plan: Plan, shards: Sequence[Notes], lines: list[Line], rejected: int) -> Line:
    """What dataset.json says."""
    recipe, settings = plan.recipe, plan.settings
    return {
        "format": FORMAT,
        "wavefold": __version__,
        "classes": plan.classes,
        "folds": plan.folds,
        "mel": recipe.mel.to_dict(),
        "segment": {
            "seconds": settings["segment_seconds"],
            "overlap": settings["overlap"],
            "samples": recipe.length,
            "hop_samples": recipe.hop,
        },
        "dtype": "float16",
        "unit": "dB",
        "shape": list(recipe.shape),
        "samples": sum(len(notes.rows) for notes in shards),
        "recordings": len(lines),
        "groups": len({x["group"] for x in lines}),
        "rejected": rejected,
        "hours": sum(x["seconds"] for x in lines) / 3600,
        "counts": {
            "class": counts(lines, "label", plan.classes),
            "split": counts(lines, "split", SPLITS),
            "fold": counts(lines, "fold", plan.folds) if plan.folds else {},
        },
        "split": {
            "method": plan.method,
            "seed": settings["seed"],
            "folds": settings["folds"],
            "parts": settings["split"],
            "fold_from": settings["fold_from"],
            "group_from": settings["group_from"],
            "split_from": settings["split_from"],
        },
        "settings": dict(settings),
        "manifest": plan.manifest,
        "shards": [
            {
                "name": shard_name(n),
                "samples": len(notes.rows),
                "bytes": notes.size,
                "sha256": notes.sha256,
            }
            for n, notes in enumerate(shards)
        ],
        "files": {name: file_entry(plan.out / name) for name in FILES},
    }


def pretty(content: Any) -> bytes:
    """JSON for people, in the order written."""
    return json.dumps(content, indent=2).encode() + b"\n"
