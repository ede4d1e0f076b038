"""What a person reads of a run: report.txt and figures of a fold, and the page report.html."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from shards.index import ShardSet, write_atomic
from shards.progress import duration
from toolkit import tables
from toolkit.detection import asked
from toolkit.folds import find_folds, summarise
from toolkit.metrics import binary_log, reliability, scores
from toolkit.predictions import (
    LEVELS,
    Predictions,
    names_of,
    of_samples,
    truth,
    write_predictions,
)
from toolkit.protocol import PROTOCOLS
from toolkit.results import Fold, make_fold, read_fold, read_json, set_identity

HARDEST = 20


def write_fold(
    folder: Path,
    shard_set: ShardSet,
    numbers: np.ndarray,
    log_probs: np.ndarray,
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """Score a trained fold and write all that tells of it; scores.json comes last: finished.

    `numbers` (N,) are sample numbers, `log_probs` (N, K) what the model says of them. `header` goes
    into scores.json: protocol, part, fold (name or None), folds, step, epoch, seconds, world_size.
    Returns the content of scores.json.

    Raises:
        UserError: nothing to score, or NaN.
    """
    from toolkit import curves, figures

    if (folder / "model.json").exists():
        info = read_json(folder / "model.json") | {"decision": header.get("decision")}
        write_atomic(folder / "model.json", (json.dumps(info, indent=2) + "\n").encode())
    result = {**header, "shard_set": set_identity(shard_set)}
    # Before the predictions are made of them: NaN has to be told, not written.
    scores(truth(shard_set, numbers), log_probs)
    decision = header.get("decision")
    predictions = of_samples(shard_set, numbers, log_probs, header["fold"], decision)
    target, costs = asked(header.get("detection"), predictions.classes)
    for level in LEVELS:
        rows = predictions.at(level)
        result[level] = scores(
            rows.labels, rows.log_probs, rows.predicted, target=target, costs=costs
        )
    write_predictions(folder / "predictions.csv", predictions, header.get("caution"))
    fold = make_fold(folder, result, predictions)
    summary, _ = summarise(folder, [fold])
    write_atomic(folder / "report.txt", classification_report(summary, predictions).encode())
    write_figures(folder, summary, predictions)
    if fold.records:  # a forest without a validation part has none
        figures.save(curves.draw_curves(fold.records), folder / "curves.png", summary["caution"])
    if "torch" in sys.modules:  # a forest needs none, and attends to nothing
        from toolkit import attention

        attention.draw_fold(folder, shard_set, numbers, summary["caution"])
    write_page(folder / "report.html", summary, [fold], predictions)
    write_atomic(folder / "scores.json", json.dumps(result, indent=1).encode())
    return result


def classification_report(summary: Mapping[str, Any], predictions: Predictions) -> str:
    """scikit-learn's classification_report, for segments and for recordings, and the protocol."""
    from sklearn.metrics import classification_report as sklearn_report

    parts = []
    for level in LEVELS:
        rows = predictions.at(level)
        text = sklearn_report(
            rows.labels,
            rows.predicted,
            labels=range(len(rows.classes)),
            target_names=[name.encode("utf-8", "replace").decode() for name in rows.classes],
            digits=4,
            zero_division=0,
        )
        parts.append(f"per {level}, {tables.caption(summary)}\n\n{text}")
    return "\n".join(parts)


def write_figures(folder: Path, summary: Mapping[str, Any], predictions: Predictions) -> None:
    """confusion_matrix.png, and of two classes roc.png and det.png."""
    from toolkit import figures

    for name, figure in drawings(summary, predictions).items():
        figures.save(figure, folder / f"{name}.png")


def drawings(summary: Mapping[str, Any], predictions: Predictions) -> dict[str, Any]:
    """The figures `confusion_matrix` and, of two classes, `roc` and `det`, over recordings."""
    from toolkit import attacks, curves, figures

    counts, found = np.array(summary["recording"]["confusion"]), summary["detection"]
    drawn = {"confusion_matrix": figures.draw_confusion(counts, summary["classes"])}
    if found and found["rows"][0]["eer"] is not None:
        both = attacks.curves(predictions.at("recording"), found), found["target"]
        drawn |= {"roc": curves.draw_roc(*both), "det": curves.draw_det(*both)}
    return {name: figures.marked(figure, summary["caution"]) for name, figure in drawn.items()}


def hardest(predictions: Predictions) -> list[dict[str, Any]]:
    """The recordings that were wrong with the highest confidence, the most confident first."""
    rows = predictions.at("recording")
    wrong, sure, right = certainty(rows)
    wrong = np.flatnonzero(wrong)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")[:HARDEST]]
    return [
        {
            "recording": rows.recording[i],
            "fold": rows.fold[i],
            "label": names_of(rows.labels[i], rows.classes),
            "predicted": names_of(rows.predicted[i], rows.classes),
            "confidence": float(sure[i]),
            "p_label": float(right[i]),
        }
        for i in chosen
    ]


def certainty(rows: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row whether it is wrong, the probability of what was predicted and of the label; of
    several classes, those of the class that is most wrong. Shape: 3 x (N,)."""
    p = rows.probabilities
    if not rows.is_multi_label:
        each = np.arange(len(p))
        return rows.labels != rows.predicted, p[each, rows.predicted], p[each, rows.labels]
    missed = np.where(rows.labels, 1 - p, p) * (rows.labels != rows.predicted)
    return missed.any(axis=1), missed.max(axis=1), 1 - missed.max(axis=1)


def agreed(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One text a key: the value, or the first and how many others the folds have."""
    found = {}
    for key in dict.fromkeys(key for environment in environments for key in environment):
        values = list(dict.fromkeys(str(e.get(key)) for e in environments))
        others = f" (and {len(values) - 1} other)" if len(values) > 1 else ""
        found[key] = values[0] + others
    return found


def write_page(
    file: Path, summary: Mapping[str, Any], folds: Sequence[Fold], predictions: Predictions
) -> None:
    """Write report.html: one file that needs no other, no network and no script."""
    import yaml
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from toolkit import curves, figures

    rows = predictions.at("recording")
    progress = (
        curves.draw_curves(folds[0].records)
        if len(folds) == 1
        else curves.draw_fold_curves({fold.name: fold.records for fold in folds})
    )
    config = dict(folds[0].config)
    if len(folds) > 1 and "data" in config:
        config["data"] = {key: v for key, v in config["data"].items() if key != "fold"}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": tables.percent, "duration": duration}
    environment.filters["interval"] = tables.interval
    drawn = drawings(summary, predictions)
    drawn = {name: Markup(figures.to_svg(figure)) for name, figure in drawn.items()}
    template = resources.files("toolkit").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        s=summary,
        title=title(summary),
        protocol=PROTOCOLS.get(summary["protocol"], ""),
        metrics=summary["metrics"],
        notices=tables.notices(summary),
        method=tables.method(summary),
        hardest=hardest(predictions),
        wrong=int(certainty(rows)[0].sum()),
        curves=Markup(figures.to_svg(progress)) if any(f.records for f in folds) else None,
        confusion=drawn.pop("confusion_matrix"),
        detection=drawn,
        said=tables.caption(summary),
        seconds=sum(fold.result.get("seconds") or 0 for fold in folds),
        calibration=Markup(
            figures.to_svg(figures.draw_reliability(*reliability(*decisions(rows))))
        ),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        environment=agreed([fold.environment for fold in folds]),
    )
    write_atomic(file, page.encode("utf-8", "replace"))


def decisions(rows: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Labels and log-probabilities as `reliability` takes them; of several classes, (N K, 2)."""
    if not rows.is_multi_label:
        return rows.labels, rows.log_probs
    present, absent = binary_log(rows.log_probs)
    both = np.stack([absent, present], axis=2).reshape(-1, 2)
    return rows.labels.reshape(-1).astype(int), both


def title(summary: Mapping[str, Any]) -> str:
    """The run, and the fold if the page is of one fold only."""
    folds = summary["folds"]
    alone = len(folds) == 1 and folds[0]["fold"] is not None
    return f"{summary['run']}, fold {folds[0]['fold']}" if alone else summary["run"]


def rebuild(folder: Path) -> Path:
    """Write report.html again, of a run or of one fold, from what lies there; returns its path.

    Raises:
        UserError: no such folder, nothing finished in it, or folds that do not belong together.
    """
    alone = (folder / "scores.json").exists()
    folds = [read_fold(folder)] if alone else find_folds(folder)
    summary, predictions = summarise(folder, folds)
    write_page(folder / "report.html", summary, folds, predictions)
    return folder / "report.html"
