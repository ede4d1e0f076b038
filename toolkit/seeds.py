"""Several seeds of a run as one result: the chance in training beside that of the data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import write_atomic
from toolkit import attacks, folds, tables
from toolkit.intervals import RESAMPLES, Interval, averaged, percentiles, scorer, units_of
from toolkit.metrics import resampled
from toolkit.predictions import LEVELS, Predictions, read_predictions
from toolkit.results import Training, read_config, read_json, unfinished

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
    done = [one for one in trainings if one.finished]
    configs = {one.seed: read_config(one.folder / "config.yaml") for one in done}
    results = [read_json(one.folder / "scores.json") for one in done]
    notes = {one["fold"] or "": note for one in results if (note := one.get("detection"))}
    at = {level: aligned(rows, level) for level in LEVELS}
    alike, unit = at["recording"], first["bootstrap"]["unit"]
    summary = {
        "run": first["run"],
        "protocol": first["protocol"],
        "caution": first["caution"],
        "seeds": {str(seed): brief(one) for seed, one in found.items()},
        "unfinished": unfinished(trainings, folder),
        "warnings": folds.config_warnings(configs, "seeds", folds.LAUNCH | {"train.seed"}),
        "bootstrap": first["bootstrap"],
        "metrics": metrics_of(first),
        "detection": attacks.summary(alike, notes, unit) if alike else None,
        **{level: over_seeds(list(found.values()), at[level], first, level) for level in LEVELS},
    }
    if len(seeds) > 1:
        write_atomic(folder / "seeds.json", json.dumps(summary, indent=1).encode())
        write_atomic(folder / "seeds.md", markdown(summary).encode("utf-8", "replace"))
    return summary


def brief(summary: Mapping[str, Any]) -> Summary:
    """Of one seed's folds what a table of seeds shows."""
    found: Summary = {"missing": summary["missing"]}
    names = metrics_of(summary)
    for level in LEVELS:
        by_fold = {
            str(fold["fold"] or summary["part"]): {name: fold[level][name] for name in names}
            for fold in summary["folds"]
        }
        pooled = {name: summary[level]["pooled"][name] for name in names}
        found[level] = {"folds": by_fold, "pooled": pooled}
    return found


def metrics_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """The scores that tables of seeds show; of two classes the EER, too."""
    return {**summary["metrics"], **({"eer": "EER"} if summary["detection"] else {})}


def over_seeds(
    found: Sequence[Mapping[str, Any]], rows: Sequence[Predictions], first: Summary, level: str
) -> Summary:
    """Mean and spread of the seeds' pooled scores, and the interval of the mean."""
    metrics = metrics_of(first)
    interval: dict[str, Interval] = dict.fromkeys(metrics)
    if rows:  # each draw takes the same units of all seeds
        units = units_of(rows[0], first["bootstrap"]["unit"])
        drawn = resampled(averaged([scorer(one, units) for one in rows]), units, RESAMPLES)
        interval = {name: percentiles(drawn[name], units) for name in metrics}
    spread = folds.spread([one[level]["pooled"] for one in found], metrics)
    return {**spread, "interval": interval}


def aligned(rows: Sequence[Predictions], level: str) -> Sequence[Predictions]:
    """The rows of one level of each seed, all in one order; none where a seed lacks some."""
    at = [one.at(level) for one in rows]
    at = [one.take(np.lexsort((one.start, one.recording.astype(str)))) for one in at]
    return at if all(one.recording.tolist() == at[0].recording.tolist() for one in at) else []


def table(summary: Mapping[str, Any], level: str = "recording") -> str:
    """One row a seed, one column a fold, then the pooled scores; mean and spread, in per cent."""
    names = list(dict.fromkeys(f for one in summary["seeds"].values() for f in one[level]["folds"]))
    rows: list[list[object]] = []
    metric = next(iter(summary["metrics"]))
    for seed, one in summary["seeds"].items():
        cells = [one[level]["folds"].get(name, {}).get(metric) for name in names]
        rows.append([seed, *map(tables.percent, cells), *pooled(summary, one[level]["pooled"])])
    rows += [
        [row, *[""] * len(names), *pooled(summary, summary[level][row])] for row in ("mean", "std")
    ]
    header = [
        "seed",
        *(f"fold {name}" for name in names),
        *(f"{m} %" for m in summary["metrics"].values()),
    ]
    return tables.rendered(header, rows, tables.caption(summary))


def pooled(summary: Mapping[str, Any], values: Mapping[str, float | None]) -> list[str]:
    """The metrics of a row, in per cent."""
    return [tables.percent(values[name]) for name in summary["metrics"]]


def score_line(summary: Mapping[str, Any]) -> str:
    """The result in one line."""
    found, n = summary["recording"], len(summary["seeds"])
    lead, word = next(iter(summary["metrics"].items()))
    line = f"{word} per recording {tables.percent(found['mean'][lead])} %"
    if n > 1:
        line += f" ± {tables.percent(found['std'][lead])} % over {n} seeds"
    edges = found["interval"][lead]
    line += f" (95 % interval {tables.interval(edges)} %)" if edges else ""
    line += f", macro F1 {tables.percent(found['mean']['macro_f1'])} %"
    if "eer" in found["mean"]:
        edges = tables.interval(found["interval"]["eer"])
        line += f", EER {tables.percent(found['mean']['eer'])} % ({edges} %)"
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
    lead = next(iter(summary["metrics"].values()))
    lead = lead[0].upper() + lead[1:]
    parts = [f"# {tables.cell(summary['run'])}", f"**{score_line(summary)}**"]
    parts += [f"> **Note:** {tables.cell(line)}" for line in notices(summary)]
    parts += [f"{lead} per recording of each fold, then the scores of all folds of a seed."]
    parts += [table(summary)]
    if summary["detection"]:
        parts += ["## Detection, per recording", tables.detection_table(summary)]
    parts += [SOURCES.format(unit=summary["bootstrap"]["unit"])]
    return "\n\n".join(parts) + "\n"
