"""Figures of a run: matplotlib without pyplot, so nothing is global and no display is needed.

Each `draw_*` returns a Figure; `save` makes a file of it, `to_svg` a part of an HTML page that
takes the page's text colour.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from shards.chart import rendered
from shards.durable import write_output
from shards.labels import shorten
from toolkit.band_statistics import BAND, OVER_TIME, SHAPE

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

COSTS = ("eer", "min_dcf")  #: lower is better
Records = Sequence[Mapping[str, Any]]


@rc_context(STYLE)
def to_png(figure: Figure) -> bytes:
    """The figure as a PNG on white."""
    return rendered(figure, "png", dpi=140, facecolor="white")


def save(figure: Figure, file: Path, caution: str | None = None) -> None:
    """Write the figure as a PNG, with a caution above it if there is one."""
    write_output(file, to_png(marked(figure, caution)))


def marked(figure: Figure, caution: str | None) -> Figure:
    """The figure with a caution above it, if there is one."""
    if caution:
        narrow = figure.get_size_inches()[0] < 5
        figure.suptitle(caution.replace(": ", ":\n") if narrow else caution, color=ORANGE, size=9)
    return figure


@rc_context(STYLE)
def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to stand inside HTML: no ids of groups, no namespaces."""
    text = rendered(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    return re.sub(r'<g id="[^"]*"', "<g", text).replace(INK, "currentColor")


def short(name: str, width: int = 24) -> str:
    """A name in at most `width` printable characters, its end among them: it often tells most."""
    return shorten(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name), width
    )


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
        box, opacity = (column - 0.5, row - 0.5), float(0.1 + 0.9 * strength)
        axes.add_patch(Rectangle(box, 1, 1, facecolor=colour, alpha=opacity, linewidth=0))
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


@rc_context(STYLE)
def draw_importance(importance: np.ndarray, n_mels: int) -> Figure:
    """Shares of the whole importance (F,): statistic by band, and below it the spectral shapes."""
    cut = len(BAND) * n_mels
    bands = 100 * importance[:cut].reshape(len(BAND), n_mels)
    shapes = 100 * importance[cut:].reshape(len(OVER_TIME), len(SHAPE))
    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
    image = upper.imshow(bands, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    upper.set_yticks(range(len(BAND)), BAND)
    upper.set(xlabel="mel band", title=f"statistics of bands: {bands.sum():.0f} % of all")
    figure.colorbar(image, ax=upper, label="% of all, each")
    place, width = np.arange(len(SHAPE)), 0.8 / len(OVER_TIME)
    for n, (how, row) in enumerate(zip(OVER_TIME, shapes, strict=True)):
        lower.bar(place + n * width, row, width, color=BLUE, alpha=1 - 0.3 * n, label=how)
    even = 100 / len(importance)
    lower.axhline(even, color="black", lw=0.8, ls=(0, (4, 3)), label="if all were alike")
    lower.set_xticks(place + width, SHAPE)
    lower.set(ylabel="% of all", title=f"shape of the spectrum: {shapes.sum():.0f} % of all")
    lower.set_ylim(0, 1.3 * max(shapes.max(), even))
    lower.legend(ncols=4, loc="upper right")
    for axes in (upper, lower):
        axes.grid(False)
    return figure


@rc_context(STYLE)
def draw_rivals(found: Mapping[str, Any], names: Mapping[str, str]) -> Figure:
    """Differences with their intervals, green where the second is better beyond them; and how many
    recordings only one of the runs has right."""
    metrics = found["metrics"]
    figure = Figure(figsize=(8.6, 1.5 + 0.34 * max(4, len(metrics))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    first, second = ("/".join(Path(run).parts[-2:]) for run in found["runs"])
    left.axvline(0, color=INK, lw=0.8, ls=(0, (4, 3)))
    for place, (name, one) in enumerate(metrics.items()):
        low, high = (100 * x for x in one["interval"])
        sign = -1 if name in COSTS else 1
        better, worse = sign * low > 0 and sign * high > 0, sign * low < 0 and sign * high < 0
        colour = "#2a9d6f" if better else ORANGE if worse else INK
        left.plot([low, high], [place, place], color=colour, lw=2)
        left.plot(100 * one["difference"], place, "o", color=colour)
    labels = [names[n] + (" (lower is better)" if n in COSTS else "") for n in metrics]
    left.set_yticks(range(len(metrics)), labels)
    left.set(ylim=(len(metrics) - 0.5, -0.5), xlabel="second less first, % points, 95 % interval")
    left.set_title(f"{short(second, 30)} less\n{short(first, 30)}")
    bars = ("both right", "only the first", "only the second", "neither")
    right.barh(bars, found["counts"], color=[INK, ORANGE, BLUE, "#9aa3ae"], alpha=0.85)
    for place, count in enumerate(found["counts"]):
        right.text(count, place, f" {count}", va="center")
    right.invert_yaxis()
    right.set(xlabel="recordings", xlim=(0, 1.2 * max(found["counts"])))
    p = found["mcnemar"]
    right.set_title("right, mean over seeds" if p is None else f"right by\nMcNemar's p = {p:.2g}")
    right.grid(False)
    return figure
