"""Several seeds of a run as one result: the chance in training beside that of the data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import write_atomic
from toolkit import folds, tables
from toolkit.folds import LAUNCH, RESAMPLES, flat
from toolkit.intervals import Interval, percentiles, resamples, sampled, units_of
from toolkit.predictions import LEVELS, Predictions, read_predictions
from toolkit.results import read_config
from toolkit.trainings import Training, unfinished

SOURCES = (
    "Pooled scores are taken of all folds of a seed together; mean and std are over the seeds "
    "(sample standard deviation): the chance in training. The 95 % interval is of the mean over "
    f"the seeds, {RESAMPLES} bootstrap resamples of whole {{unit}}s: the choice of recordings."
)
Summary = dict[str, Any]


def collect_seeds(folder: Path, trainings: Sequence[Training], unit: str) -> Summary | None:
    """Join the folds of each seed, then the seeds; None where nothing is finished.

    Writes what `folds.collect` does into the folder of each seed, and seeds.json and seeds.md into
    `folder` where there is more than one.

    Raises:
        UserError: the seeds do not belong together.
    """
    seeds = sorted({one.seed for one in trainings if one.finished}, key=lambda seed: seed or 0)
    places = {seed: folder if seed is None else folder / f"seed-{seed}" for seed in seeds}
    found = {seed: folds.collect(place, unit) for seed, place in places.items()}
    if not found:
        return None
    first = next(iter(found.values()))
    for seed, summary in found.items():
        for key in ("protocol", "part", "shard_set", "classes"):
            if summary[key] != first[key]:
                raise UserError(f"{places[seed]}: another {key} than in {places[seeds[0]]}; "
                                "train all seeds alike")  # fmt: skip
    rows = [read_predictions(place / "predictions.csv") for place in places.values()]
    summary = {
        "run": first["run"],
        "protocol": first["protocol"],
        "caution": first["caution"],
        "metrics": first["metrics"],
        "seeds": {str(seed): brief(one) for seed, one in found.items()},
        "unfinished": unfinished(trainings, folder),
        "warnings": warnings([one for one in trainings if one.finished]),
        "bootstrap": first["bootstrap"],
        **{level: over_seeds(list(found.values()), rows, level) for level in LEVELS},
    }
    if len(seeds) > 1:
        write_atomic(folder / "seeds.json", json.dumps(summary, indent=1).encode())
        write_atomic(folder / "seeds.md", markdown(summary).encode("utf-8", "replace"))
    return summary


def brief(summary: Mapping[str, Any]) -> Summary:
    """Of one seed's folds what a table of seeds shows."""
    found: Summary = {"missing": summary["missing"]}
    names = summary["metrics"]
    for level in LEVELS:
        by_fold = {
            str(fold["fold"] or summary["part"]): {name: fold[level][name] for name in names}
            for fold in summary["folds"]
        }
        pooled = {name: summary[level]["pooled"][name] for name in names}
        found[level] = {"folds": by_fold, "pooled": pooled}
    return found


def over_seeds(
    found: Sequence[Mapping[str, Any]], rows: Sequence[Predictions], level: str
) -> Summary:
    """Mean and spread of the seeds' pooled scores, and the interval of the mean."""
    names, unit = found[0]["metrics"], found[0]["bootstrap"]["unit"]
    values = {name: [one[level]["pooled"][name] for one in found] for name in names}
    defined = {name: None not in several for name, several in values.items()}
    many = len(found) > 1
    return {
        "mean": {name: mean(v) if defined[name] else None for name, v in values.items()},
        "std": {name: stdev(v) if many and defined[name] else None for name, v in values.items()},
        "interval": intervals([one.at(level) for one in rows], unit, list(names)),
    }


def intervals(rows: Sequence[Predictions], unit: str, names: list[str]) -> dict[str, Interval]:
    """The 95 % intervals of the means over seeds: a draw takes the same recordings of each seed.

    None while the seeds have not tested the same ones.
    """
    rows = [in_order(one) for one in rows]
    if any(list(one.recording) != list(rows[0].recording) for one in rows):
        return dict.fromkeys(names)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for weights in resamples(units_of(rows[0], unit), RESAMPLES):
        each = [sampled(one, weights) for one in rows]
        for name in names:
            draws[name].append(np.mean([one[name] for one in each], axis=0))
    return {name: percentiles(np.concatenate(found)) for name, found in draws.items()}


def in_order(rows: Predictions) -> Predictions:
    """Rows by recording and time, the same for every seed."""
    order = np.lexsort((rows.start, np.unique(rows.recording, return_inverse=True)[1]))
    arrays = {f.name: getattr(rows, f.name)[order] for f in fields(rows) if f.name != "classes"}
    return replace(rows, **arrays)


def warnings(trainings: Sequence[Training]) -> list[str]:
    """One line for each setting that differs between seeds and should not."""
    configs = {one.seed: flat(read_config(one.folder / "config.yaml")) for one in trainings}
    lines = []
    for key in dict.fromkeys(key for config in configs.values() for key in config):
        values = {seed: config.get(key) for seed, config in configs.items()}
        differ = any(value != next(iter(values.values())) for value in values.values())
        if differ and key not in LAUNCH | {"train.seed"}:
            told = ", ".join(f"{seed}: {value}" for seed, value in values.items())
            lines.append(f"{key} differs between the seeds ({told})")
    return lines


def table(summary: Mapping[str, Any], level: str = "recording") -> str:
    """One row a seed, one column a fold, then the pooled scores; mean and spread, in per cent."""
    names = list(dict.fromkeys(f for one in summary["seeds"].values() for f in one[level]["folds"]))
    metrics = summary["metrics"]
    lead = next(iter(metrics))
    rows: list[list[object]] = []
    for seed, one in summary["seeds"].items():
        cells = [one[level]["folds"].get(name, {}).get(lead) for name in names]
        cells += [one[level]["pooled"][name] for name in metrics]
        rows.append([seed, *map(tables.percent, cells)])
    for row in ("mean", "std"):
        cells = [tables.percent(summary[level][row][name]) for name in metrics]
        rows.append([row, *[""] * len(names), *cells])
    header = ["seed", *(f"fold {name}" for name in names), *(f"{m} %" for m in metrics.values())]
    return tables.table(header, rows, tables.caption(summary))


def score_line(summary: Mapping[str, Any]) -> str:
    """The result in one line."""
    found, n = summary["recording"], len(summary["seeds"])
    lead, name = next(iter(summary["metrics"].items()))
    line = f"{name} per recording {tables.percent(found['mean'][lead])} %"
    if n > 1:
        line += f" ± {tables.percent(found['std'][lead])} % over {n} seeds"
    edges = found["interval"][lead]
    line += f" (95 % interval {tables.interval(edges)} %)" if edges else ""
    line += f", macro F1 {tables.percent(found['mean']['macro_f1'])} %"
    return f"{line}; {tables.caption(summary)}"


def notices(summary: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the numbers, one line each."""
    lines = [f"not finished: {', '.join(summary['unfinished'])}"] if summary["unfinished"] else []
    lines += [
        f"seed {seed}: folds missing: {', '.join(one['missing'])}"
        for seed, one in summary["seeds"].items() if one["missing"]
    ]  # fmt: skip
    return lines + summary["warnings"]


def markdown(summary: Mapping[str, Any]) -> str:
    """seeds.md."""
    parts = [f"# {tables.cell(summary['run'])}", f"**{score_line(summary)}**"]
    parts += [f"> **Note:** {tables.cell(line)}" for line in notices(summary)]
    lead = next(iter(summary["metrics"].values()))
    parts += [f"Per recording: {lead} of each fold, then the scores of all folds of a seed."]
    parts += [table(summary), SOURCES.format(unit=summary["bootstrap"]["unit"])]
    return "\n\n".join(parts) + "\n"
