"""Figures of a run: matplotlib without pyplot, so nothing is global and no display is needed.

Each `draw_*` returns a Figure; `to_png` makes a file of it, `to_svg` a part of an HTML page that
takes the page's text colour.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, BLUE, ORANGE = "#1c2430", "#3566d6", "#d9730d"
FOLD_COLOURS = (BLUE, ORANGE, "#2a9d6f", "#c2417c", "#7b5bd6", "#a88415", "#1b93b3", "#b4483a")
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "wavefold",
}

Records = Sequence[Mapping[str, Any]]


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG on white."""
    return rendered(figure, "png", dpi=140, facecolor="white")


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to stand inside HTML: no ids of groups, no namespaces."""
    text = rendered(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    return re.sub(r'<g id="[^"]*"', "<g", text).replace(INK, "currentColor")


def rendered(figure: Figure, kind: str, **options: Any) -> bytes:
    """The bytes of the figure in the format `kind`."""
    out = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        # A class name may be in a script that matplotlib's font lacks; the SVG still shows it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        figure.savefig(out, format=kind, **options)
    return out.getvalue()


def short(name: str, width: int = 24) -> str:
    """A name in at most `width` printable characters."""
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return name if len(name) <= width else name[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


@rc_context(STYLE)
def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts (K, K) in cells whose colour is the share of their row; made for 2 to 50 classes."""
    k = len(classes)
    cell = float(np.clip(5.2 / k, 0.24, 1.1))
    longest = 0.08 * max(len(short(name)) for name in classes)  # inches, about
    margin = 0.5 + longest
    figure = Figure(
        figsize=(k * cell + margin + 0.2, k * cell + margin + 0.2), layout="constrained"
    )
    axes = figure.add_subplot(aspect="equal", xlabel="predicted", ylabel="true")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(cell * 17, 4.5, 11))
    # Opacity instead of a colour map: the empty end is then the page's own background.
    for row, column in np.argwhere(matrix > 0):
        strength = share[row, column]
        colour = BLUE if row == column else ORANGE
        box = (column - 0.5, row - 0.5)
        axes.add_patch(rectangle(box, colour, float(0.1 + 0.9 * strength)))
        ink = "white" if strength > 0.5 else INK
        count = int(matrix[row, column])
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=size, color=ink)
    names = [short(name) for name in classes]
    label_size = float(np.clip(cell * 22, 5.5, 9))
    slant: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > cell else {}
    )
    axes.set_xticks(range(k), names, fontsize=label_size, **slant)
    axes.set_yticks(range(k), names, fontsize=label_size)
    axes.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.grid(False)
    for edge in range(1, k):
        axes.axhline(edge - 0.5, color=INK, alpha=0.1, lw=0.5, zorder=0)
        axes.axvline(edge - 0.5, color=INK, alpha=0.1, lw=0.5, zorder=0)
    axes.spines[:].set_visible(True)
    return figure


def rectangle(corner: tuple[float, float], colour: str, opacity: float) -> Any:
    """A unit square with its lower corner at `corner`."""
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, facecolor=colour, alpha=opacity, linewidth=0)


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


def panels(titles: Sequence[str], records: Records) -> tuple[Figure, list[Axes]]:
    """A row of axes over the epochs."""
    figure = Figure(figsize=(9.9, 2.6), layout="constrained")
    unit = "epoch" if any(r.get("kind") == "epoch" for r in records) else "step"
    row = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(row, titles, strict=True):
        axes.set(title=title, xlabel=unit)
    return figure, list(row)


def scored(records: Records) -> bool:
    """Whether any epoch was evaluated: protocol kfold evaluates nothing before the end."""
    return any(record["kind"] == "eval" for record in records)


@rc_context(STYLE)
def draw_curves(records: Records) -> Figure:
    """Loss, accuracy and learning rate of one fold over its epochs, from metrics.jsonl."""
    middle_titles = ("accuracy",) if scored(records) else ()
    last = ("learning rate",) if any("lr" in r for r in records) else ()  # a forest has none
    figure, (loss, *others) = panels(("loss", *middle_titles, *last), records)
    middle, rates = others[: len(middle_titles)], others[len(middle_titles) :]
    steps = thinned(*series(records, "loss", kind="train"))
    plot(loss, steps, color=BLUE, alpha=0.25, lw=0.8)
    plot(loss, series(records, "train_loss", kind="epoch"), color=BLUE, label="train")
    for part, colour in (("val", "#2a9d6f"), ("test", ORANGE)):
        plot(loss, series(records, "loss", kind="eval", part=part), color=colour, label=part)
        for accuracy in middle:
            points = series(records, "accuracy", kind="eval", part=part)
            plot(accuracy, points, color=colour, label=part)
            accuracy.set_ylim(0, 1.02)
    for axes in (loss, *middle):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    loss.set_ylim(bottom=0)
    for rate in rates:
        plot(rate, thinned(*series(records, "lr", kind="train")), color=BLUE)
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter("{x:g}")
    return figure


@rc_context(STYLE)
def draw_fold_curves(records: Mapping[str, Records]) -> Figure:
    """Train loss, and loss and accuracy of the evaluated part: one line a fold."""
    everything = [record for fold in records.values() for record in fold]
    titles = ("train loss", "evaluated loss", "accuracy") if scored(everything) else ("train loss",)
    figure, axes = panels(titles, everything)
    for number, (name, fold) in enumerate(records.items()):
        style = {"color": FOLD_COLOURS[number % len(FOLD_COLOURS)], "lw": 1.2}
        plot(axes[0], series(fold, "train_loss", kind="epoch"), **style, label=short(name, 10))
        part = "test" if any(r.get("part") == "test" for r in fold) else "val"
        for chart, key in zip(axes[1:], ("loss", "accuracy"), strict=False):
            plot(chart, series(fold, key, kind="eval", part=part), **style)
    for chart, top in zip(axes, (None, None, 1.02), strict=False):
        chart.set_ylim(0, top)
    if len(records) <= 10 and axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(title="fold", ncols=2 if len(records) > 5 else 1)
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
def draw_effects(sweep: Mapping[str, Any]) -> Figure:
    """A panel a knob: each setting's score over the knob's values, and their means."""
    effects = sweep["effects"]
    figure = Figure(figsize=(1.0 + 2.9 * len(effects), 3.2), layout="constrained")
    row = figure.subplots(1, len(effects), squeeze=False, sharey=True)[0]
    for axes, (key, values) in zip(row, effects.items(), strict=True):
        for place, one in enumerate(values):
            n = len(one["scores"])
            axes.plot([place] * n, one["scores"], "o", color=BLUE, alpha=0.35, markersize=4)
        axes.plot([one["mean"] for one in values], "o-", color=ORANGE, label="mean")
        names = [short(one["value"], 14) for one in values]
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
        axes.set(title=short(key), xlim=(-0.5, len(names) - 0.5))
        axes.grid(False, axis="x")
    row[0].set_ylabel(f"validation {sweep['metric']}")
    row[0].legend()
    return figure


@rc_context(STYLE)
def draw_reliability(count: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> Figure:
    """Accuracy over confidence, one bar a bin (see `metrics.reliability`), and the counts below."""
    figure = Figure(figsize=(3.8, 3.8), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    edges = np.linspace(0, 1, len(count) + 1)[:-1]
    width = 1 / len(count)
    filled = count > 0
    top.bar(edges, accuracy, width, align="edge", color=BLUE, alpha=0.75, linewidth=0)
    top.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=(0, (4, 3)))
    top.plot(confidence[filled], accuracy[filled], "o", color=ORANGE, markersize=3.5)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.bar(edges, count, width, align="edge", color=INK, alpha=0.35, linewidth=0)
    below.set(xlabel="confidence", ylabel="count")
    return figure
