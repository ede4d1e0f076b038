"""A grid of settings as one result: ranked by the validation part, and what each knob does.

Test parts choose nothing: where nothing is validated the settings stand in their own order.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from shards.index import write_atomic
from toolkit import seeds, tables
from toolkit.folds import LAUNCH, flat
from toolkit.metrics import SIGNS
from toolkit.protocol import CAUTION
from toolkit.results import Training, read_config, read_json, read_records, unfinished

Sweep = dict[str, Any]


def collect_sweep(run: Path, trainings: Sequence[Training], unit: str) -> Sweep:
    """Join folds and seeds of each setting, then the settings: sweep.json, sweep.md, sweep.png.

    Raises:
        UserError: what is in the folder of one setting does not belong together.
    """
    grids = {one.grid: [t for t in trainings if t.grid == one.grid] for one in trainings}
    joined = {
        grid: seeds.collect_seeds(run / grid, several, unit) for grid, several in grids.items()
    }
    configs: dict[str, dict[str, Any]] = {}  # of a setting, by its first training that has one
    choosers = set()
    for t in trainings:
        config = flat(read_config(t.folder / "config.yaml"))
        configs[t.grid] = configs.get(t.grid) or config
        choosers |= {config.get("train.best_metric", "macro_f1")} if config else set()
    metric = min(choosers, default="macro_f1")
    knobs = differing(configs)
    settings: list[dict[str, Any]] = []
    for grid, several in grids.items():
        values = [validated(one, metric) for one in several if one.finished]
        scores = [value for value in values if value is not None]
        settings.append({
            "name": grid,
            "values": {key: configs[grid].get(key) for key in knobs},
            "trained": len(values),
            "validated": len(scores),
            "unfinished": unfinished(several, run),
            "validation": mean(scores) if scores else None,
            "std": stdev(scores) if len(scores) > 1 else None,
            "test": joined[grid],
        })  # fmt: skip
    every = {t.folder.relative_to(run / t.grid) for t in trainings if t.finished}
    for one in settings:  # of the same folds and seeds as all others
        one["whole"] = one["validated"] == len(every)
    protocols = sorted({one["protocol"] for one in joined.values() if one})
    why = unranked(protocols, sorted(choosers), settings)
    ranked = not why
    if ranked:
        settings.sort(key=lambda one: (not one["whole"], -SIGNS[metric] * (one["validation"] or 0)))
    effects = {key: effect(key, settings) for key in knobs} if ranked else {}
    sweep = {"run": run.name, "protocols": protocols, "metric": metric, "ranked": ranked,
             "unranked": why, "knobs": knobs, "settings": settings, "effects": effects}  # fmt: skip
    write_atomic(run / "sweep.json", json.dumps(sweep, indent=1).encode())
    write_atomic(run / "sweep.md", markdown(sweep).encode("utf-8", "replace"))
    (run / "sweep.png").unlink(missing_ok=True)
    if effects:  # none where one setting has come to anything so far
        from toolkit import figures

        figures.save(figures.draw_effects(sweep), run / "sweep.png")
    return sweep


def unranked(
    protocols: Sequence[str], metrics: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> str | None:
    """Why the settings cannot be ranked, or None."""
    named = ", ".join(protocols)
    if len(protocols) > 1:
        why = f"data.protocol is {named}, and each validates on another part; sweep within one"
    # Under kfold_optimistic the part that validates is the one that tests.
    elif not any(one["validated"] for one in settings) or set(protocols) & set(CAUTION):
        why = (
            f"data.protocol={named} has no validation part of its own, and choosing by the test "
            "part would spoil its scores; sweep with --data.protocol=kfold_nested"
        )
    elif len(metrics) > 1:
        why = (
            f"train.best_metric is {', '.join(metrics)}, and settings that chose their epochs by "
            "different scores have none in common; sweep with one"
        )
    elif not any(one["whole"] for one in settings):
        why = "no setting has validated all folds and seeds that there are; train what is missing"
    else:
        return None
    return f"nothing is ranked: {why}"


def differing(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that were swept: those that are not everywhere the same."""
    known = [config for config in configs.values() if config]
    keys = dict.fromkeys(key for config in known for key in config)
    leave = LAUNCH | {"train.seed"}
    return [k for k in keys if k not in leave and len({str(c.get(k)) for c in known}) > 1]


def validated(training: Training, metric: str) -> float | None:
    """A finished training's `metric` on the validation part, at the step that was scored."""
    step = read_json(training.folder / "scores.json")["step"]
    for record in reversed(read_records(training.folder / "metrics.jsonl")):
        if record.get("part") == "val" and record["step"] == step:
            return None if record.get(metric) is None else float(record[metric])
    return None


def effect(key: str, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each value of a knob the mean over all whole settings with it, lowest value first."""
    whole = [one for one in settings if one["whole"]]
    values = {str(one["values"][key]): one["values"][key] for one in whole}
    if all(isinstance(value, int | float) for value in values.values()):
        values = dict(sorted(values.items(), key=lambda pair: float(pair[1])))
    found = []
    for name in values:
        scores = [one["validation"] for one in whole if str(one["values"][key]) == name]
        found.append({"value": name, "mean": mean(scores), "scores": scores})
    return found


def number(metric: str, value: float | None) -> str:
    """A score in per cent, a loss as it is."""
    return "-" if value is None else f"{value:.4f}" if metric == "loss" else f"{100 * value:.1f}"


def table(sweep: Mapping[str, Any]) -> str:
    """One row a setting, the best on the validation part first; unranked: its test scores."""
    metric, knobs = sweep["metric"], sweep["knobs"]
    unit = metric if metric == "loss" else f"{metric} %"
    rows = []
    for place, one in enumerate(sweep["settings"], 1):
        row = [place if sweep["ranked"] and one["whole"] else "-"]
        row += [one["values"][key] for key in knobs]
        if sweep["ranked"]:
            row += [number(metric, one["validation"]), number(metric, one["std"])]
        elif one["test"]:
            found, lead = one["test"]["recording"], next(iter(one["test"]["metrics"]))
            row += [tables.percent(found["mean"][lead]), tables.interval(found["interval"][lead])]
        else:
            row += ["-", "-"]
        rows.append([*row, one["trained"]])
    scores = [f"validation {unit}", "std"] if sweep["ranked"] else ["tested %", "95 % interval"]
    return tables.rendered(["rank", *knobs, *scores, "trained"], rows, tables.caption(sweep))


def effect_table(sweep: Mapping[str, Any]) -> str:
    """One row a value of each knob: its mean, and how far it is from the best value's."""
    metric, rows = sweep["metric"], []
    for key, values in sweep["effects"].items():
        best = max(SIGNS[metric] * one["mean"] for one in values) * SIGNS[metric]
        for one in values:
            shown = number(metric, one["mean"]), number(metric, one["mean"] - best)
            rows.append([key, one["value"], *shown, len(one["scores"])])
    header = ["knob", "value", f"mean validation {metric}", "to the best", "settings"]
    return tables.rendered(header, rows, tables.caption(sweep))


def notices(sweep: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the numbers, one line each."""
    lines = [] if sweep["ranked"] else [sweep["unranked"]]
    unfinished = [name for one in sweep["settings"] for name in one["unfinished"]]
    lines += [f"not finished: {', '.join(unfinished)}"] if unfinished else []
    if sweep["ranked"] and not all(one["whole"] for one in sweep["settings"]):
        lines.append("settings without all folds and seeds that others have are not ranked")
    return lines


def score_line(sweep: Mapping[str, Any]) -> str:
    """The chosen setting and what it scores on the test parts, which chose nothing."""
    first = sweep["settings"][0]
    if not sweep["ranked"]:
        return f"{len(sweep['settings'])} settings, not ranked"
    return f"best on validation: {first['name']}; tested: {seeds.score_line(first['test'])}"


def markdown(sweep: Mapping[str, Any]) -> str:
    """sweep.md."""
    parts = [f"# {tables.cell(sweep['run'])}", f"**{score_line(sweep)}**"]
    parts += [f"> **Note:** {tables.cell(line)}" for line in notices(sweep)]
    parts += [table(sweep)]
    if sweep["ranked"]:
        parts += [
            "Means and sample standard deviations over all trainings of a setting (folds, seeds), "
            "each at the epoch that its validation part chose.",
        ]
    if sweep["effects"]:
        parts += ["## Knobs", effect_table(sweep), "![knobs](sweep.png)"]
    return "\n\n".join(parts) + "\n"
