"""The learning-rate range test: how the loss answers while the rate rises step by step.

Smith, Cyclical learning rates for training neural networks (WACV 2017). `S` steps.
"""

import logging
from pathlib import Path

import numpy as np

from shards.errors import UserError
from toolkit import curves, figures
from toolkit.schema import Config
from toolkit.trial import open_trial

log = logging.getLogger(__name__)

DIVERGED = 4.0  #: times the first loss: the sweep need not go on
SMOOTHING = 3.0  #: standard deviation of the Gaussian over the losses, steps


def find(config: Config, out: Path, steps: int, lowest: float, highest: float) -> float:
    """Sweep, draw the curve into `out`, return the suggested rate. The run's folder is left alone.

    Raises:
        UserError: rates or steps that make no sweep, or a loss that never falls.
    """
    if not (0 < lowest < highest and steps >= 20):
        raise UserError(
            f"--lowest={lowest:g} --highest={highest:g} --steps={steps}: expected "
            "0 < lowest < highest and at least 20 steps"
        )
    rates, losses = sweep(config, np.geomspace(lowest, highest, steps))
    smooth, place = steepest(losses)
    figures.save(curves.draw_lr_range(rates, losses, smooth, place), out)
    if place is None:
        raise UserError(
            f"{out}: the loss never fell below that of the untrained model; "
            f"sweep other rates than {lowest:g} to {highest:g}"
        )
    return float(rates[place])


def sweep(config: Config, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Train fresh weights a step at each of `rates` (S,), until the loss diverges.

    Returns the rates that were tried, and the loss before each step: both of one length, <= S.
    """
    *_, loader, stepper = open_trial(config)
    losses: list[float] = []
    for step, batches in enumerate(loader.steps(0, len(rates)), 1):
        taken = stepper(batches, step, float(rates[step - 1]))
        losses.append(taken.loss)
        if step % 10 == 0:
            log.info("step %d  lr %.2e  loss %.4f", step, rates[step - 1], losses[-1])
        if not (taken.finite and losses[-1] < DIVERGED * losses[0]):
            break
    return rates[: len(losses)], np.array(losses)


def steepest(losses: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The losses (S,) smoothed, and where they fall fastest before their minimum; None: nowhere.

    The smoothing is centred, a running mean would lag and tell too high a rate.
    """
    from scipy.ndimage import gaussian_filter1d

    ceiling = np.where(np.isfinite(losses), losses, np.inf).clip(max=DIVERGED * losses[0])
    smooth = gaussian_filter1d(ceiling, SMOOTHING, mode="nearest")
    lowest = int(smooth.argmin())
    if smooth[lowest] >= 0.98 * smooth[0]:
        return smooth, None
    return smooth, int(np.gradient(smooth)[: lowest + 1].argmin())
