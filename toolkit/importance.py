"""The picture of which statistics a forest asks for. `M` mel bands, `F` features."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from toolkit.band_statistics import BAND, OVER_TIME, SHAPE
from toolkit.figures import BLUE, STYLE


@rc_context(STYLE)
def draw(importance: np.ndarray, n_mels: int) -> Figure:
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
