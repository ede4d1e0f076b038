"""The picture of two runs compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from toolkit.figures import BLUE, INK, ORANGE, STYLE, short

#: Lower is better.
COSTS = ("eer", "min_dcf")


@rc_context(STYLE)
def draw(found: Mapping[str, Any], names: Mapping[str, str]) -> Figure:
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
    right.set(xlabel="recordings", xlim=(0, 1.15 * max(found["counts"])))
    right.set_title(f"right by, McNemar p = {found['mcnemar']:.2g}")
    right.grid(False)
    return figure
