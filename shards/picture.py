"""A contact sheet: some spectrograms of every class of a shard set, in one PNG.

Shapes: `K` classes, `P` pictures a class, `M` mel bands, `T` frames.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from shards.chart import rendered
from shards.durable import write_output
from shards.errors import UserError
from shards.index import ShardSet
from shards.labels import shorten
from shards.read import Reader

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Inches: a panel, the gaps between panels, the margins.
PANEL_WIDTH, PANEL_HEIGHT = 3.0, 1.1
GAP_X, GAP_Y = 0.25, 0.5
LEFT, RIGHT, TOP, BOTTOM = 0.65, 0.2, 0.95, 0.45
MAX_PIXELS = 60_000  # Agg draws at most 65,535 a side; many classes are drawn smaller
RANGE = 80.0  # dB shown below the loudest value
TICKS = (31, 62, 125, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)


@dataclass(frozen=True)
class Panel:
    """One spectrogram and where it goes."""

    row: int
    column: int
    title: str
    values: np.ndarray  # (M, T) dB


def contact_sheet(shard_set: ShardSet, output: Path, per_class: int = 4) -> None:
    """Draw `per_class` spectrograms of every class, a row a class, into the PNG `output`.

    The samples are drawn at random, always the same ones, from different recordings as far as there
    are any; one colour scale in dB serves all, from the loudest value down to 80 dB below it.

    Raises:
        UserError: `per_class` is below 1, or the set holds no samples.
        shards.errors.ShardError: a shard is missing or too short.
    """
    if per_class < 1:
        raise UserError(f"--per_class={per_class}: at least 1")
    if not len(shard_set.index):
        raise UserError(f"{shard_set}: holds no samples, so there is nothing to draw")
    panels = choose_panels(shard_set, per_class)
    save(draw(shard_set, panels, 1 + max(panel.column for panel in panels)), output)


def save(figure: "Figure", output: Path) -> None:
    """Write a figure of panels as the PNG `output`, whole or not at all."""
    dpi = min(110, MAX_PIXELS / max(figure.get_size_inches()))
    write_output(output, rendered(figure, "png", dpi=dpi))


def choose_panels(shard_set: ShardSet, per_class: int, seed: int = 0) -> list[Panel]:
    """The samples to show, read, in the order of their places."""
    labels = np.array(shard_set.index["label"])
    holds = shard_set.label_table
    chosen = [
        choose(np.flatnonzero(holds[labels, label]), shard_set.index, per_class, [seed, label])
        for label in range(len(shard_set.class_names))
    ]
    numbers = np.concatenate(chosen)
    rows = shard_set.index[numbers]
    lines = shard_set.lines_of(rows["recording"].tolist())
    with Reader(shard_set) as reader:
        values = reader.read(numbers)
    places = [(row, column) for row, some in enumerate(chosen) for column in range(len(some))]
    return [
        Panel(*place, title(shard_set, lines[int(row["recording"])]["path"], row), image)
        for place, row, image in zip(places, rows, values, strict=True)
    ]


def choose(rows: np.ndarray, index: np.ndarray, count: int, seed: list[int]) -> np.ndarray:
    """At most `count` of the sample numbers `rows`, one a recording first, in ascending order."""
    rows = np.random.default_rng(seed).permutation(rows)
    first = np.sort(np.unique(index["recording"][rows], return_index=True)[1])
    return np.sort(np.concatenate([rows[first], np.delete(rows, first)])[:count])


def title(shard_set: ShardSet, path: str, row: np.void) -> str:
    """Class, recording and start of one sample, short enough for its panel."""
    name = shorten(shard_set.label_names[row["label"]], 18)
    return f"{name} · {shorten(PurePosixPath(path).name, 22)} · {row['start']:g} s"


def draw(shard_set: ShardSet, panels: list[Panel], per_class: int) -> "Figure":
    """The figure: a header with the colour bar, then rows of P panels."""
    from matplotlib.figure import Figure  # and not pyplot: no global state, no window

    rows = 1 + max(panel.row for panel in panels)
    width = LEFT + RIGHT + per_class * PANEL_WIDTH + (per_class - 1) * GAP_X
    height = TOP + BOTTOM + rows * PANEL_HEIGHT + (rows - 1) * GAP_Y
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, per_class, squeeze=False)
    figure.subplots_adjust(
        left=LEFT / width,
        right=1 - RIGHT / width,
        bottom=BOTTOM / height,
        top=1 - TOP / height,
        wspace=GAP_X / PANEL_WIDTH,
        hspace=GAP_Y / PANEL_HEIGHT,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    loudest = max(float(panel.values.max()) for panel in panels)
    quietest = min(float(panel.values.min()) for panel in panels)
    limits = (min(max(quietest, loudest - RANGE), loudest - 1), loudest)
    ticks = mel_ticks(shard_set)
    for panel in panels:
        image = draw_panel(grid[panel.row, panel.column], panel, shard_set, limits, ticks)
    header(figure, image, shard_set)
    return figure


def draw_panel(
    axes: "Axes",
    panel: Panel,
    shard_set: ShardSet,
    limits: tuple[float, float],
    ticks: dict[str, float],
) -> "AxesImage":
    """One spectrogram with its seconds, and its Hz if it stands at the left edge."""
    from matplotlib.ticker import MaxNLocator

    mel, (n_mels, frames) = shard_set.info["mel"], panel.values.shape
    timed = mel["hop_length"] and mel["sample_rate"]  # a converted set may not know
    seconds = frames * mel["hop_length"] / mel["sample_rate"] if timed else frames
    axes.set_axis_on()
    axes.set_title(panel.title, fontsize=8, loc="left", pad=3, parse_math=False)
    axes.tick_params(labelsize=7, length=2, pad=2, labelleft=panel.column == 0)
    axes.set_yticks(list(ticks.values()), list(ticks))
    if panel.column == 0:
        axes.set_ylabel("Hz", fontsize=7, labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g} s" if timed else "{x:g}")
    return axes.imshow(
        panel.values.astype(np.float32),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, seconds, -0.5, n_mels - 0.5),
    )


def mel_ticks(shard_set: ShardSet) -> dict[str, float]:
    """Labels in Hz and the mel band, a fraction, where each lies: octaves that stand well apart."""
    import librosa

    mel = shard_set.info["mel"]
    if mel["fmin"] is None or mel["fmax"] is None:
        return {}
    centres = librosa.mel_frequencies(mel["n_mels"] + 2, fmin=mel["fmin"], fmax=mel["fmax"])[1:-1]
    ticks: dict[str, float] = {}
    last = np.inf
    for hz in reversed(TICKS):
        place = float(np.interp(hz, centres, np.arange(len(centres))))
        if centres[0] <= hz <= max(centres[-1], mel["fmax"]) and last - place > len(centres) / 9:
            ticks[f"{hz // 1000}k" if hz >= 1000 else str(hz)] = last = place
    return ticks


def header(figure: "Figure", image: "AxesImage", shard_set: ShardSet) -> None:
    """What set this is, and the colour bar of all panels."""
    width, height = figure.get_size_inches()
    info = shard_set.info
    text = f"{shard_set.name}: {len(shard_set.index)} samples, "
    text += f"{len(info['classes'])} classes"
    above = (height - 0.32) / height
    figure.text(LEFT / width, above, shorten(text, 60), fontsize=10, va="center", parse_math=False)
    bar = min(2.4, 0.4 * width)
    place = (1 - (RIGHT + bar) / width, (height - 0.38) / height, bar / width, 0.12 / height)
    colour_bar = figure.colorbar(image, cax=figure.add_axes(place), orientation="horizontal")
    colour_bar.ax.tick_params(labelsize=7, length=2, pad=2)
    colour_bar.ax.set_title("dB", fontsize=7, pad=2)
