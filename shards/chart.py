"""balance.png: stacked bars, recordings and time of each class in each fold and part.

Shapes: `K` classes, `C` bars.
"""

import io
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.balance import Balance
from shards.labels import display_names, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 50  # classes with a colour of their own; the rest is grey together
ROWS = 25  # of a column of the legend
HEIGHT, LEGEND, BAR = 4.6, 1.9, 0.32  # inches: of all, of a column of the legend, of a bar


def balance_png(balance: Balance) -> bytes:
    """The picture of a balance; the same bytes for the same numbers and version of matplotlib."""
    columns = balance.columns()
    amounts = [
        [balance.total(name, **column) for column in columns.values()] for name in balance.classes
    ]
    recordings = tuple(tuple(a.recordings for a in row) for row in amounts)
    seconds = tuple(tuple(a.seconds for a in row) for row in amounts)
    return drawn(tuple(columns), tuple(balance.classes), recordings, seconds)


@lru_cache(maxsize=1)  # a build has it drawn before all is done, by what headers say
def drawn(columns: tuple[str, ...], names: tuple[str, ...], *amounts: tuple) -> bytes:
    """The picture of recordings and of seconds, a tuple a class of a number a column."""
    from matplotlib.figure import Figure  # and not pyplot: no global state, no window

    recordings, seconds = (np.array(rows, float) for rows in amounts)
    unit, scale = ("hours", 3600) if seconds.sum() > 7200 else ("seconds", 1)
    classes, colours = display_names(names), palette(len(names))
    if len(classes) > SHOWN:
        kept = np.sort(np.argsort(-seconds.sum(axis=1), kind="stable")[: SHOWN - 1])
        recordings, seconds = merged(recordings, kept), merged(seconds, kept)
        classes = [*(classes[n] for n in kept), f"{len(classes) - len(kept)} more"]

    legend = LEGEND * -(-len(classes) // ROWS)
    panel = 1.0 + max(2.4, BAR * len(columns))
    figure = Figure(figsize=(2 * panel + legend, HEIGHT))
    left, right = figure.subplots(1, 2)
    width = 2 * panel + legend
    figure.subplots_adjust(
        left=0.7 / width, right=1 - (legend + 0.1) / width, bottom=0.17, top=0.92, wspace=0.28
    )
    bars = draw_bars(left, recordings, list(columns), colours, "recordings")
    draw_bars(right, seconds / scale, list(columns), colours, unit)
    figure.legend(
        bars[::-1],
        [shorten(name, 22).replace("$", r"\$") for name in classes[::-1]],
        loc="center left",
        bbox_to_anchor=(1 - legend / width, 0.5),
        ncols=-(-len(classes) // ROWS),
        fontsize=7,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.0,
    )
    return rendered(figure, "png", dpi=110)


def rendered(figure: "Figure", kind: str, **options: Any) -> bytes:
    """A figure in the format `kind`; letters that its font lacks are no lines on a screen."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(out, format=kind, **options)
    return out.getvalue()


def draw_bars(
    axes: "Axes", values: np.ndarray, titles: list[str], colours: np.ndarray, unit: str
) -> list:
    """Stack (K, C) values into C bars; the handle of each class for the legend."""
    titles = [title.replace("$", r"\$") for title in titles]
    rows, columns = values.shape
    feet = np.concatenate([np.zeros((1, columns)), np.cumsum(values, axis=0)[:-1]])
    colours = np.repeat(colours[:rows], columns, axis=0)
    edge = 0.3 if rows <= 20 else 0.0
    places = np.tile(np.arange(columns), rows)  # all at once: a call a class takes as long
    bars = axes.bar(
        places, values.ravel(), 0.8, feet.ravel(), color=colours, edgecolor="white", linewidth=edge
    )
    axes.set_xticks(range(columns), titles)
    axes.set_title(unit, fontsize=9, loc="left", y=1.0)  # where it stands: nothing is measured
    axes.tick_params(labelsize=7)
    axes.tick_params(axis="x", rotation=45 if len(titles) > 4 else 0)
    axes.spines[["top", "right"]].set_visible(False)
    return list(bars)[::columns]


def merged(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(K, C) with the rows that are not kept added up in the last one."""
    return np.concatenate([values[kept], np.delete(values, kept, axis=0).sum(axis=0)[None]])


def palette(classes: int) -> np.ndarray:
    """(K, 4) colours, neighbours unlike; grey at the end if there are too many to tell apart."""
    from matplotlib import colormaps

    names = ["tab10"] if classes <= 10 else ["tab20", "tab20b", "tab20c"]
    colours = np.concatenate([colormaps[name](np.arange(colormaps[name].N)) for name in names])
    if classes > SHOWN:
        return np.concatenate([colours[: SHOWN - 1], [[0.6, 0.6, 0.6, 1.0]]])
    return colours[:classes]
