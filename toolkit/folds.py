"""The folds of a run as one result: out-of-fold predictions, mean and spread, intervals.

A *summary* is the dict that folds.json holds; `summarise` makes it, tables and pages show it.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import write_atomic
from toolkit import attacks, tables, tagging
from toolkit.detection import asked
from toolkit.intervals import RESAMPLES, chosen_unit, intervals, units_of
from toolkit.metrics import confusion, scores
from toolkit.predictions import LEVELS, Predictions, join, write_predictions
from toolkit.protocol import CAUTION
from toolkit.results import Fold, find_trainings, last_words, read_fold

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}

#: What the folds of one run may differ in: the fold, and what a launch decides without changing the
#: training. The shard set may lie elsewhere on each machine; it is compared by its content.
LAUNCH = {
    "data.fold", "data.stage", "data.shards", "run.name", "run.dir", "run.part",
    "train.microbatch", "train.threads", "train.log_every", "train.save_every",
    "train.save_minutes", "train.keep_last", "train.keep_best", "train.keep_epochs",
    "train.resume", "hub.repo", "hub.private", "hub.timeout",
}  # fmt: skip


def find_folds(run: Path) -> list[Fold]:
    """The finished folds of a run, in the order of the shard set.

    Raises:
        UserError: no run, no finished fold, or a fold's folder instead of the run's.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run; name a folder that training wrote, as runs/NAME")
    if (run / "scores.json").exists():
        fold = read_fold(run)
        if fold.result["fold"] is not None and run.resolve().name.startswith("fold-"):
            raise UserError(f"{run}: one fold of a run; collect the run, {run.resolve().parent}")
        return [fold]
    folders = sorted(file.parent for file in run.glob("fold-*/scores.json"))
    if not folders:
        if several := [t.folder for t in find_trainings(run) if t.finished]:
            runs = (one.parent if one.name.startswith("fold-") else one for one in several)
            names = ", ".join(dict.fromkeys(str(one.relative_to(run)) for one in runs))
            raise UserError(f"{run}: has several seeds or settings; name one of them: {names}")
        words = ((folder.name, last_words(folder, 1)) for folder in sorted(run.glob("fold-*")))
        said = "".join(f"; {name} said last: {line}" for name, lines in words for line in lines)
        raise UserError(f"{run}: no finished fold (no fold-*/scores.json); train one first{said}")
    folds = [read_fold(folder) for folder in folders]
    order = fold_names(folds)
    return sorted(folds, key=lambda fold: order.index(fold.name))


def fold_names(folds: Sequence[Fold]) -> list[str]:
    """All the folds the shard set has, whether trained or not."""
    names = [str(name) for name in folds[0].result.get("folds") or []]
    return [*names, *(fold.name for fold in folds if fold.name not in names)]


def check(folds: Sequence[Fold]) -> None:
    """Raise a UserError unless the folds are parts of one experiment."""
    first = folds[0]
    for fold in folds[1:]:
        pair = f"{first.folder} and {fold.folder}"
        if fold.predictions.classes != first.predictions.classes:
            raise UserError(f"{pair}: different classes; train both on one shard set")
        for key in ("protocol", "part", "shard_set"):
            if fold.result.get(key) != first.result.get(key):
                values = f"{first.result.get(key)} and {fold.result.get(key)}"
                raise UserError(
                    f"{pair}: different {key.replace('_', ' ')}s, {values}; train both alike"
                )
    fold_of: dict[str, str] = {}
    for fold in folds:
        for recording in fold.predictions.at("recording").recording:
            if recording in fold_of:
                raise UserError(
                    f"{recording}: in fold {fold_of[recording]} and in fold {fold.name}; "
                    "a recording is tested once: remove the folder that does not belong to the run"
                )
            fold_of[recording] = fold.name


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted names: `{"optim.lr": 0.001, ...}`."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def config_warnings(
    configs: Mapping[Any, Mapping[str, Any]], what: str, free: Container[str] = LAUNCH
) -> list[str]:
    """One line for each setting, none of those that are `free`, in which configs differ that should
    not: those of the folds, or `what` else they are of, by its name."""
    known = {name: flat(config) for name, config in configs.items()}
    lines = []
    for key in dict.fromkeys(key for config in known.values() for key in config):
        first, *others = (config.get(key) for config in known.values())
        if key not in free and any(value != first for value in others):
            told = ", ".join(f"{name}: {config.get(key)}" for name, config in known.items())
            lines.append(f"{key} differs between the {what} ({told})")
    return lines


def spread(results: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """`mean` and `std`, of the sample, of each score over those results that have it."""
    found = {name: [one[name] for one in results if one[name] is not None] for name in names}
    return {
        "mean": {name: mean(values) if values else None for name, values in found.items()},
        "std": {name: stdev(v) if len(v) > 1 else None for name, v in found.items()},
    }


def level_summary(
    folds: Sequence[Fold], rows: Predictions, unit: str, level: str
) -> dict[str, Any]:
    """Pooled scores, intervals, confusion matrix, and mean and spread over folds, of one level."""
    metrics = tagging.METRICS if rows.is_multi_label else METRICS
    noted = folds[0].result.get("detection")
    target, costs = asked(noted, rows.classes)
    return {
        "pooled": scores(rows.labels, rows.log_probs, rows.predicted, target=target, costs=costs),
        "interval": intervals(rows, unit, noted),
        **spread([fold.result[level] for fold in folds], metrics),
        "confusion": confusion(rows.labels, rows.predicted, len(rows.classes)).tolist(),
        "units": len(np.unique(units_of(rows, unit))),
    }


def summarise(
    run: Path, folds: Sequence[Fold], unit: str = "auto"
) -> tuple[dict[str, Any], Predictions]:
    """The summary of some folds of `run`, and their out-of-fold predictions.

    Raises:
        UserError: the folds do not belong together, or a recording is in two of them.
    """
    check(folds)
    joined = join([fold.predictions for fold in folds])
    unit = chosen_unit(joined.at("recording"), unit)
    first = folds[0].result
    names = [fold.name for fold in folds]
    whole = folds[0].folder.resolve() == run.resolve()  # a page of one fold misses none
    missing = [] if whole else [name for name in fold_names(folds) if name not in names]
    folders = [f"fold-{fold_names(folds).index(name)}" for name in missing]
    parts = ("fold", "epoch", "step", "stopped", "world_size", *LEVELS)  # no times: they differ
    summary = {
        "run": str(folds[0].config.get("run", {}).get("name") or run.resolve().name),
        "protocol": first["protocol"],
        "part": first["part"],
        "shard_set": first.get("shard_set"),
        "caution": CAUTION.get(first["protocol"]),
        "decisions": {fold.name: fold.result.get("decision") for fold in folds},
        "classes": list(joined.classes),
        "metrics": tagging.METRICS if joined.is_multi_label else METRICS,
        "folds": [{key: fold.result.get(key) for key in parts} for fold in folds],
        "missing": missing,
        "missing_folders": folders,
        "why": {name: last_words(run / f) for name, f in zip(missing, folders, strict=True)},
        "warnings": config_warnings({fold.name: fold.config for fold in folds}, "folds"),
        "bootstrap": {"n": RESAMPLES, "unit": unit, "seed": 0, "level": 0.95},
    }
    notes = {fold.predictions.fold[0]: fold.result.get("detection") for fold in folds}
    known = {name: note for name, note in notes.items() if note}
    summary["detection"] = attacks.summary([joined.at("recording")], known, unit)
    for level in LEVELS:
        summary[level] = level_summary(folds, joined.at(level), unit, level)
    return summary, joined


def histories(folds: Sequence[Fold]) -> dict[str, list[dict[str, Any]]]:
    """By fold, what each epoch measured: epoch, step, seconds, train_loss and, where there is a
    validation part, val_loss, val_macro_f1, ..."""
    found: dict[str, dict[int, dict[str, Any]]] = {fold.name: {} for fold in folds}
    for fold in folds:
        for line in fold.records:
            if line.get("kind") in ("epoch", "eval"):
                measured = {k: v for k, v in line.items() if k not in ("kind", "time", "part")}
                known = ("epoch", "step", "seconds", "samples", "train_loss")
                named = {k if k in known else f"val_{k}": v for k, v in measured.items()}
                found[fold.name].setdefault(line["epoch"], {}).update(named)
    return {name: list(epochs.values()) for name, epochs in found.items()}


def collect(run: Path, bootstrap_unit: str = "auto") -> dict[str, Any]:
    """Join the folds of a run and write folds.json, folds.md, predictions.csv and the report.

    Raises:
        UserError: no finished fold, or folds that do not belong together.
    """
    from toolkit import report

    folds = find_folds(run)
    summary, joined = summarise(run, folds, bootstrap_unit)
    if folds[0].folder != run:  # a run without folds has both of its own
        write_predictions(run / "predictions.csv", joined, summary["caution"])
        report.write_figures(run, summary, joined)
    write_atomic(run / "histories.json", json.dumps(histories(folds), indent=1).encode())
    write_atomic(run / "folds.md", tables.markdown(summary).encode("utf-8", "replace"))
    report.write_page(run / "report.html", summary, folds, joined)
    write_atomic(run / "folds.json", json.dumps(summary, indent=1).encode())
    return summary
