"""Several seeds of a run, and several settings: which trainings there are, seeds as one result."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np

from shards.errors import UserError
from shards.index import write_atomic
from toolkit import folds, tables
from toolkit.folds import LAUNCH, METRICS, RESAMPLES, flat
from toolkit.metrics import resampled
from toolkit.predictions import LEVELS, Predictions, read_predictions
from toolkit.results import read_config

#: GRID/seed-S/fold-F below the run's folder, as launch.tasks names them; any may be absent.
TRAINING = re.compile(
    r"(?:(?P<grid>[^/]*=[^/]*)/)?(?:seed-(?P<seed>\d+)/)?(?:fold-(?P<fold>\d+)/)?"
)
LEFT = ("environment.json", "train.log", "scores.json")  #: by a training that was begun
SOURCES = (
    "Pooled scores are taken of all folds of a seed together; mean and std are over the seeds "
    "(sample standard deviation): the chance in training. The 95 % interval is of the mean over "
    f"the seeds, {RESAMPLES} bootstrap resamples of whole {{unit}}s: the choice of recordings."
)
Summary = dict[str, Any]


class Training(NamedTuple):
    """A training that was begun, and where it stands in the run."""

    folder: Path
    grid: str  #: what its settings differ in; "" without a grid
    seed: int | None

    @property
    def finished(self) -> bool:
        """Whether it has been scored."""
        return (self.folder / "scores.json").exists()


def find_trainings(run: Path) -> list[Training]:
    """All trainings below a run's folder, in the order of settings, seeds and folds."""
    globs = [f"{depth}{name}" for depth in ("", "*/", "*/*/", "*/*/*/") for name in LEFT]
    found = []
    for folder in {file.parent for pattern in globs for file in run.glob(pattern)}:
        match = TRAINING.fullmatch("".join(f"{part}/" for part in folder.relative_to(run).parts))
        if match:
            seed = int(match["seed"]) if match["seed"] else None
            found.append((match["grid"] or "", seed, int(match["fold"] or 0), folder))
    found.sort(key=lambda one: (one[0], one[1] or 0, one[2]))
    return [Training(folder, grid, seed) for grid, seed, _, folder in found]


def unfinished(trainings: Sequence[Training], run: Path) -> list[str]:
    """The trainings that were begun and not scored, by their folder below the run's."""
    return [str(one.folder.relative_to(run)) for one in trainings if not one.finished]


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
        "seeds": {str(seed): brief(one) for seed, one in found.items()},
        "unfinished": unfinished(trainings, folder),
        "warnings": warnings([one for one in trainings if one.finished]),
        "bootstrap": first["bootstrap"],
        **{level: over_seeds(list(found.values()), rows, unit, level) for level in LEVELS},
    }
    if len(seeds) > 1:
        write_atomic(folder / "seeds.json", json.dumps(summary, indent=1).encode())
        write_atomic(folder / "seeds.md", markdown(summary).encode("utf-8", "replace"))
    return summary


def brief(summary: Mapping[str, Any]) -> Summary:
    """Of one seed's folds what a table of seeds shows."""
    found: Summary = {"missing": summary["missing"]}
    for level in LEVELS:
        by_fold = {
            str(fold["fold"] or summary["part"]): {name: fold[level][name] for name in METRICS}
            for fold in summary["folds"]
        }
        pooled = {name: summary[level]["pooled"][name] for name in METRICS}
        found[level] = {"folds": by_fold, "pooled": pooled}
    return found


def over_seeds(
    found: Sequence[Mapping[str, Any]], rows: Sequence[Predictions], unit: str, level: str
) -> Summary:
    """Mean and spread of the seeds' pooled scores, and the interval of the mean."""
    values = {name: [one[level]["pooled"][name] for one in found] for name in METRICS}
    at = [one.at(level) for one in rows]
    alike = all(set(one.recording) == set(at[0].recording) for one in at)  # else folds are missing
    return {
        "mean": {name: mean(found) for name, found in values.items()},
        "std": {name: stdev(v) if len(v) > 1 else None for name, v in values.items()},
        "interval": {name: interval(at, unit, name) if alike else None for name in METRICS},
    }


def interval(rows: Sequence[Predictions], unit: str, metric: str) -> list[float]:
    """The 95 % interval of the mean over seeds: each draw takes the same units of all of them."""
    draws = [
        resampled(one.labels, one.predicted, getattr(one, unit), metric, RESAMPLES) for one in rows
    ]
    return [float(edge) for edge in np.percentile(np.mean(draws, axis=0), [2.5, 97.5])]


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


def table(summary: Mapping[str, Any], level: str = "recording", metric: str = "accuracy") -> str:
    """One row a seed, one column a fold, then the pooled scores; mean and spread, in per cent."""
    names = list(dict.fromkeys(f for one in summary["seeds"].values() for f in one[level]["folds"]))
    rows: list[list[object]] = []
    for seed, one in summary["seeds"].items():
        cells = [one[level]["folds"].get(name, {}).get(metric) for name in names]
        rows.append([seed, *map(tables.percent, cells), *pooled(one[level]["pooled"])])
    rows += [[row, *[""] * len(names), *pooled(summary[level][row])] for row in ("mean", "std")]
    header = ["seed", *(f"fold {name}" for name in names), *(f"{m} %" for m in METRICS.values())]
    return tables.table(header, rows, summary["caution"])


def pooled(values: Mapping[str, float | None]) -> list[str]:
    """The metrics of a row, in per cent."""
    return [tables.percent(values[name]) for name in METRICS]


def score_line(summary: Mapping[str, Any]) -> str:
    """The result in one line."""
    found, n = summary["recording"], len(summary["seeds"])
    line = f"accuracy per recording {tables.percent(found['mean']['accuracy'])} %"
    if n > 1:
        line += f" ± {tables.percent(found['std']['accuracy'])} % over {n} seeds"
    edges = found["interval"]["accuracy"]
    line += f" (95 % interval {tables.interval(edges)} %)" if edges else ""
    return line + f", macro F1 {tables.percent(found['mean']['macro_f1'])} %"


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
    parts += ["Accuracy per recording of each fold, then the scores of all folds of a seed."]
    parts += [table(summary), SOURCES.format(unit=summary["bootstrap"]["unit"])]
    return "\n\n".join(parts) + "\n"
