"""Curves: of a training over its epochs, of the folds beside each other, of the loss over rates,
and of two classes ROC and DET."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.detection import Curve, roc_auc
from toolkit.figures import BLUE, FOLD_COLOURS, INK, ORANGE, STYLE, Records, short

COLOURS = (INK, BLUE, ORANGE)
TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  #: of DET
Detections = Sequence[tuple[str, Curve, float, float]]  #: name, curve, EER, min-DCF
SHARES = {"accuracy": "accuracy", "mAP": "average_precision"}  #: of 1; keys by titles of panels


def series(records: Records, key: str, **where: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y): epochs done (steps, if no epoch is finished) and the value of `key`, in order.

    Only records whose fields equal `where`; of a step done twice, after a resume, the later.
    """
    chosen = {
        r["step"]: r[key]
        for r in records
        if r.get(key) is not None and all(r.get(name) == value for name, value in where.items())
    }
    steps = np.array(sorted(chosen), np.float64)
    values = np.array([chosen[step] for step in sorted(chosen)], np.float64)
    return steps / steps_per_epoch(records), values


def steps_per_epoch(records: Records) -> float:
    """Optimiser steps an epoch, from the epochs that were finished; 1 if none was."""
    ends = {r["step"] for r in records if r.get("kind") == "epoch"}
    return max(ends) / len(ends) if ends else 1.0


def thinned(x: np.ndarray, y: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points, each the mean of its neighbours: a long run stays a small picture."""
    if len(x) <= most:
        return x, y
    starts = np.linspace(0, len(x), most, endpoint=False).astype(int)
    count = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / count, np.add.reduceat(y, starts) / count


def plot(axes: Axes, points: tuple[np.ndarray, np.ndarray], **style: Any) -> None:
    """A line through the points; a marker where there are too few to see one."""
    if len(points[0]):
        axes.plot(*points, marker="o" if len(points[0]) < 3 else None, markersize=4, **style)


def panels(titles: Sequence[str], records: Records) -> tuple[Figure, dict[str, Axes]]:
    """A row of axes over the epochs, or over the trees of a forest, by their titles."""
    figure = Figure(figsize=(9.9, 2.6), layout="constrained")
    unit = "epoch" if any(r.get("kind") == "epoch" for r in records) else "step"
    unit = unit if any("samples" in r for r in records) else "trees"
    row = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(row, titles, strict=True):
        axes.set(title=title, xlabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure, dict(zip(titles, row, strict=True))


def from_zero(axes: Axes, title: str) -> None:
    """Show the values from 0 on: shares up to 1, others with some room above the highest."""
    highest = 1.08 * axes.dataLim.y1
    axes.set_ylim(0, 1.02 if title in SHARES else highest if np.isfinite(highest) else None)


def scored(records: Records) -> list[str]:
    """The score that is drawn beside the loss: mAP where samples have several classes; none where
    no epoch was evaluated, as by protocol kfold before the end."""
    told = [record for record in records if record["kind"] == "eval"]
    return ["mAP" if "micro_f1" in told[0] else "accuracy"] if told else []


@rc_context(STYLE)
def draw_curves(records: Records) -> Figure:
    """Loss, accuracy and learning rate of one fold over its epochs, from metrics.jsonl."""
    titles = ["loss", *scored(records)]
    rated = any("lr" in r for r in records)  # a forest has none
    figure, axes = panels([*titles, *["learning rate"] * rated], records)
    steps = thinned(*series(records, "loss", kind="train"))
    plot(axes["loss"], steps, color=BLUE, alpha=0.25, lw=0.8)
    plot(axes["loss"], series(records, "train_loss", kind="epoch"), color=BLUE, label="train")
    for title in titles:
        for part, colour in (("val", "#2a9d6f"), ("test", ORANGE)):
            points = series(records, SHARES.get(title, title), kind="eval", part=part)
            plot(axes[title], points, color=colour, label=part)
        from_zero(axes[title], title)
        if axes[title].get_legend_handles_labels()[0]:
            axes[title].legend()
    if rated:
        rate = axes["learning rate"]
        plot(rate, thinned(*series(records, "lr", kind="train")), color=BLUE)
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter("{x:g}")
    return figure


@rc_context(STYLE)
def draw_fold_curves(records: Mapping[str, Records]) -> Figure:
    """Train loss, and loss and accuracy of the evaluated part: one line a fold."""
    everything = [record for fold in records.values() for record in fold]
    score = scored(everything)
    evaluated = {"evaluated loss": "loss", score[0]: SHARES[score[0]]} if score else {}
    figure, axes = panels(["train loss", *evaluated], everything)
    first = axes["train loss"]
    for number, (name, fold) in enumerate(records.items()):
        style = {"color": FOLD_COLOURS[number % len(FOLD_COLOURS)], "lw": 1.2}
        plot(first, series(fold, "train_loss", kind="epoch"), **style, label=short(name, 10))
        part = "test" if any(r.get("part") == "test" for r in fold) else "val"
        for title, key in evaluated.items():
            plot(axes[title], series(fold, key, kind="eval", part=part), **style)
    for title, chart in axes.items():
        from_zero(chart, title)
    if len(records) <= 10 and first.get_legend_handles_labels()[0]:
        first.legend(title="fold", ncols=2 if len(records) > 5 else 1)
    return figure


@rc_context(STYLE)
def draw_lr_range(
    rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray, place: int | None
) -> Figure:
    """Loss over learning rate (S,), raw and smoothed; `place` is the suggested one (lr_range)."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
    axes.plot(rates, losses, color=BLUE, alpha=0.3, lw=0.8, label="each step")
    axes.plot(rates, smooth, color=BLUE, label="smoothed")
    if place is not None:
        axes.axvline(rates[place], color=ORANGE, lw=0.8, ls=(0, (4, 3)))
        label = f"steepest descent: {rates[place]:.1e}"
        axes.plot(rates[place], smooth[place], "o", color=ORANGE, label=label)
    top, bottom = 1.3 * max(smooth[0], losses[0]), min(smooth.min(), np.nanmin(losses))
    axes.set(ylim=(bottom - 0.05 * (top - bottom), top), xlim=(rates[0], rates[-1]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.legend(loc="lower left")
    return figure


@rc_context(STYLE)
def draw_roc(found: Detections, target: str) -> Figure:
    """Hits over false alarms."""
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot(
        aspect="equal",
        xlabel="false alarms, share of the others",
        ylabel=f"hits, share of {target}",
    )
    axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=(0, (4, 3)))
    for (name, curve, _, _), colour in zip(found, COLOURS, strict=False):
        label = f"{name}: AUC {100 * roc_auc(curve)[0]:.1f} %"
        axes.plot(curve.false_alarms[0], 1 - curve.misses[0], color=colour, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")
    return figure


@rc_context(STYLE)
def draw_det(found: Detections, target: str) -> Figure:
    """Misses over false alarms on the scale of normal deviates (Martin et al., Eurospeech 1997):
    two normal distributions of one width give a straight line. The EER is marked."""
    figure = Figure(figsize=(4.2, 4.9), layout="constrained")
    axes = figure.add_subplot(
        aspect="equal", xlabel="false alarms, %", ylabel=f"misses of {target}, %"
    )
    for (name, curve, eer, dcf), colour in zip(found, COLOURS, strict=False):
        label = f"{name}: EER {100 * eer:.1f} %, min-DCF {dcf:.3f}"
        points = [deviate(rates[0]) for rates in (curve.false_alarms, curve.misses)]
        axes.plot(*points, color=colour, label=label)
        axes.plot(deviate(eer), deviate(eer), "o", color=colour, markersize=4)
    edge = (deviate(0.0005), deviate(0.9))
    axes.plot(edge, edge, color=INK, lw=0.8, ls=(0, (4, 3)))
    labels, places = [f"{100 * tick:g}" for tick in TICKS], [float(deviate(x)) for x in TICKS]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.set(xlim=edge, ylim=edge)
    figure.legend(loc="outside lower center")
    return figure


def deviate(rate: np.ndarray | float) -> np.ndarray:
    """The normal deviate of a share; 0 and 1 lie far outside the picture."""
    from scipy.special import ndtri

    return ndtri(np.clip(rate, 1e-6, 1 - 1e-6))
