"""One batch, over and over: a model that cannot learn that by heart cannot learn anything else.

`B` samples of the global batch, `K` classes.
"""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from shards.errors import TrainingError
from shards.index import ShardSet
from shards.loader import Batch, Loader
from shards.read import Reader
from toolkit.models import dropout
from toolkit.schema import AugmentConfig, Config
from toolkit.step import Stepper
from toolkit.trial import Trial, open_trial

log = logging.getLogger(__name__)

GOAL = 0.05  #: cross entropy
STEPS = 500  #: unless train.max_steps says otherwise
WARM_UP = 10  #: steps of a linear rise to optim.lr, which then stays
ENOUGH = 5 * WARM_UP  #: steps from which a loss that does not fall tells something
SHOWN = 20  #: steps between lines
WHOLE: dict[str, Any] = dict.fromkeys(dropout.KEYS, 0.0)  #: nothing is left out


def overfit_batch(config: Config) -> int:
    """Train fresh weights on the first global batch alone; returns the steps to a loss below GOAL.

    The batch is as stored: no augmentation, dropout, label smoothing, weight decay or average of
    weights, which keep a model from learning by heart; the rate is constant. No run is written.

    Raises:
        TrainingError: the loss stays above; says why, as far as it can be told.
    """
    trial, limit = open_trial(plainest(config)), config.train.max_steps or STEPS
    batches = next(trial.loader.steps(0, 1))
    losses: list[float] = []
    for step in range(1, limit + 1):
        rate = config.optim.lr * min(1.0, step / WARM_UP)
        taken = trial.stepper(batches, step, rate)
        losses.append(taken.loss)
        if not taken.finite or taken.loss < GOAL:
            break
        if trial.world.is_main and step % SHOWN == 1:
            log.info("step %d  loss %.4f  gradient %.3g", step, taken.loss, taken.norm)
    if losses[-1] < GOAL and taken.finite:
        if trial.world.is_main:
            log.info(
                "one batch of %d: loss %.3g after %d steps, %.3g before: the model can learn",
                config.train.batch_size, losses[-1], len(losses), losses[0],
            )  # fmt: skip
        return len(losses)
    why = reason(trial, batches, losses, taken.norm, limit)
    raise TrainingError(
        f"train.overfit_batch: the loss is {losses[-1]:.4g} after {len(losses)} steps, {GOAL:g} is "
        f"asked: {why}"
    )


def plainest(config: Config) -> Config:
    """The configuration without what is there to prevent learning by heart."""
    return replace(
        config,
        augment=AugmentConfig(),
        model=replace(config.model, **WHOLE),
        optim=replace(config.optim, label_smoothing=0.0, weight_decay=0.0, ema=0.0),
    )


def reason(trial: Trial, batches: list[Batch], losses: list[float], norm: float, limit: int) -> str:
    """Why the loss did not fall below GOAL: the first cause that shows."""
    x, y, numbers = global_batch(trial.shard_set, trial.loader)
    classes, lr = trial.shard_set.class_names, trial.stepper.config.optim.lr
    lowest, twins = floor(x, y, numbers)
    first, last = losses[0], losses[-1]
    tail = losses[-max(2, limit // 5) :]
    if not math.isfinite(last) or not math.isfinite(norm):
        return f"loss or gradient overflow; lower optim.lr={lr:g}"
    if lowest >= GOAL:
        labelled = " and ".join(
            f"{number} as {trial.shard_set.label_names[label]}" for number, label in twins
        )
        return (
            f"labels contradict each other, no model gets below {lowest:.3g}: samples {labelled} "
            "are the same spectrogram; mend the labels, or build with --on_duplicate=drop"
        )
    if (x == x[:1]).all():
        return "all spectrograms of the batch are the same; look at `python -m shards show`"
    spread = output_spread(trial.stepper, batches)
    if norm < 1e-7 or spread < 1e-6:
        return (
            f"dead outputs: they differ by {spread:.2g} between samples, the gradient is "
            f"{norm:.2g}; lower optim.lr={lr:g}, or look for units that never fire"
        )
    if last > first and len(losses) >= ENOUGH:
        return f"it rose, from {first:.4g}; lower optim.lr={lr:g}"
    if tail[-1] < 0.9 * tail[0]:
        return (
            f"it still falls ({tail[0]:.3g} {len(tail)} steps ago); raise optim.lr={lr:g}, or "
            f"--train.max_steps={2 * limit}"
        )
    if len(losses) < ENOUGH:
        return (
            f"{len(losses)} steps, the first {WARM_UP} of them warm-up, tell nothing; leave "
            f"train.max_steps={limit} out ({STEPS} steps), or give it at least {ENOUGH}"
        )
    return (
        f"it is stuck (chance: {math.log(len(classes)):.3g}); try another optim.lr than {lr:g} "
        "(python -m toolkit lr_find), or a larger model"
    )


def global_batch(shard_set: ShardSet, loader: Loader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first batch of all ranks: (B, M, T) float16 dB, (B,) labels, (B,) sample numbers."""
    numbers = loader.selection[loader.order.batch(0, range(loader.plan.batch_size))]
    with Reader(shard_set, check=loader.reading.check) as reader:
        return reader.read(numbers), shard_set.rows(numbers)["label"], numbers


def floor(x: np.ndarray, y: np.ndarray, numbers: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """The least mean cross entropy that a function of the spectrogram can have, and two samples,
    number and label, that forbid less. It gives each spectrogram the shares of its labels.

    Shape: (B, M, T), (B,), (B,).
    """
    seen: dict[bytes, list[tuple[int, int]]] = {}
    for spectrogram, label, number in zip(x, y, numbers, strict=True):
        seen.setdefault(spectrogram.tobytes(), []).append((int(number), int(label)))
    total, twins = 0.0, []
    for found in seen.values():
        labels, counts = np.unique([label for _, label in found], return_counts=True)
        total -= float((counts * np.log(counts / counts.sum())).sum())
        if len(labels) > 1:
            twins = [next(one for one in found if one[1] == label) for label in labels[:2]]
    return total / len(y), twins


@torch.no_grad()
def output_spread(stepper: Stepper, batches: list[Batch]) -> float:
    """The largest standard deviation of a logit over this rank's part of the batch."""
    logits = torch.cat([stepper.forward(batch, 1)[0].double() for batch in batches])
    return float(logits.std(0, correction=0).max())
