"""ROC and DET of two classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from toolkit.detection import Curve, roc_auc
from toolkit.figures import BLUE, INK, ORANGE, STYLE

COLOURS = (INK, BLUE, ORANGE)
TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
Curves = Sequence[tuple[str, Curve, float, float]]  #: name, curve, EER, min-DCF


@rc_context(STYLE)
def draw_roc(curves: Curves, target: str) -> Figure:
    """Hits over false alarms."""
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot(
        aspect="equal",
        xlabel="false alarms, share of the others",
        ylabel=f"hits, share of {target}",
    )
    axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=(0, (4, 3)))
    for (name, curve, _, _), colour in zip(curves, COLOURS, strict=False):
        label = f"{name}: AUC {100 * roc_auc(curve)[0]:.1f} %"
        axes.plot(curve.false_alarms[0], 1 - curve.misses[0], color=colour, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")
    return figure


@rc_context(STYLE)
def draw_det(curves: Curves, target: str) -> Figure:
    """Misses over false alarms on the scale of normal deviates (Martin et al., Eurospeech 1997):
    two normal distributions of one width give a straight line. The EER is marked."""
    figure = Figure(figsize=(4.2, 4.9), layout="constrained")
    axes = figure.add_subplot(
        aspect="equal", xlabel="false alarms, %", ylabel=f"misses of {target}, %"
    )
    for (name, curve, eer, dcf), colour in zip(curves, COLOURS, strict=False):
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
