"""A loss or gradient that is not finite: who is to blame, and whether training goes on."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from shards.errors import TrainingError, UserError
from shards.index import ShardSet
from shards.loader import Batch
from toolkit.schema import Config
from toolkit.step import Outcome, Stepper
from toolkit.track import Metrics
from toolkit.world import sharding

log = logging.getLogger(__name__)

#: What is looked at, in the order of a step: the first that is not finite is to blame.
LEVELS = ("stored spectrogram", "augmented spectrogram", "output of the model", "gradient")
SHOWN = 5  #: samples and recordings that a line names


class Guard:
    """Bears `train.nonfinite_patience` steps in a row that are not finite; the next one ends all.

    Such a step has moved nothing: neither weights, nor their average, nor batch norm's statistics.
    """

    def __init__(self, config: Config, stepper: Stepper, shard_set: ShardSet, metrics: Metrics):
        self.patience, self.borne = config.train.nonfinite_patience, 0
        self.stepper, self.shard_set, self.metrics = stepper, shard_set, metrics
        if self.patience and stepper.strategy.zero:
            raise UserError(
                f"train.nonfinite_patience={self.patience}: DeepSpeed takes its steps by itself, "
                "none can be skipped; leave it at 0 or use launch/gpu_n.yaml or FSDP"
            )

    def __call__(self, taken: Outcome, batches: list[Batch], now: dict[str, Any]) -> None:
        """Look at the step that was `taken` over `batches`; every rank calls.

        Raises:
            TrainingError: it is not finite, nor were the `patience` steps before it.
        """
        if taken.finite:
            self.borne = 0
            return
        ranks: list[tuple[int, list[int]]] = gather_object(
            [suspects(self.stepper, batches, now["step"])]
        )
        level = min(found for found, _ in ranks)
        guilty = [rank for rank, (found, _) in enumerate(ranks) if found == level]
        numbers = [number for rank in guilty for number in ranks[rank][1]]
        paths = recordings_of(self.shard_set, numbers)
        self.metrics.write(
            "nonfinite", **now, loss=str(taken.loss), grad_norm=str(taken.norm), level=level,
            numbers=numbers, recordings=paths, ranks=guilty,
        )  # fmt: skip
        what = f"the loss is {taken.loss}, the gradient's norm {taken.norm}"
        line = f"step {now['step']}: {what}: {told(level, numbers, paths, guilty)}"
        self.borne += 1
        if self.borne > self.patience:
            raise TrainingError(f"{line}; {way_out(level)}")
        if self.stepper.world.is_main:
            log.warning("%s; skipped, %d of %d", line, self.borne, self.patience)


def suspects(stepper: Stepper, batches: list[Batch], step: int) -> tuple[int, list[int]]:
    """The first of LEVELS that is not finite in this rank's microbatches, and in which samples.

    The step is taken apart from the same random state. A gradient is that of a whole microbatch;
    where ranks share the weights, a forward would need them all, and only the input is looked at.
    """
    model = stepper.strategy.module

    @torch.no_grad()
    def output(batch: Batch) -> torch.Tensor:
        return stepper.forward(batch, step)[0]

    def gradient(batch: Batch) -> torch.Tensor:
        stepper.micro_step(batch, step, last=True)
        sums = [p.grad.double().sum() for p in model.parameters() if p.grad is not None]
        stepper.strategy.optimizer.zero_grad()
        return torch.stack(sums).sum().expand(len(batch.numbers))

    looks: list[Callable[[Batch], torch.Tensor]] = [lambda batch: batch.x]
    looks += [lambda batch: stepper.augment(batch, step)[0]]
    looks += [] if sharding() else [output, gradient]
    for level, look in enumerate(looks):
        bad = [batch.numbers[~finite_rows(look(batch))] for batch in batches]
        stepper.reduction.forget()  # what a forward has left in batch norm
        if sum(map(len, bad)):
            return level, sorted(map(int, np.concatenate(bad)))
    return len(LEVELS), sorted(int(number) for batch in batches for number in batch.numbers)


def finite_rows(values: torch.Tensor) -> np.ndarray:
    """Which of B entries are finite all through. Shape: (B, ...) -> (B,) bool."""
    return values.isfinite().reshape(len(values), -1).all(1).cpu().numpy()


def recordings_of(shard_set: ShardSet, numbers: list[int]) -> list[str]:
    """The paths of the recordings that samples were cut from, as recordings.jsonl has them."""
    wanted = shard_set.rows(np.array(numbers, np.int64))["recording"].tolist()
    return [line["path"] for line in shard_set.lines_of(wanted).values()]


def told(level: int, numbers: list[int], paths: list[str], ranks: list[int]) -> str:
    """Which samples of which recordings, on which ranks."""
    where = f"samples {listed(numbers)}, recordings {listed(paths)}"
    if level == len(LEVELS):
        return f"no microbatch shows it by itself; {where}"
    return f"not finite is the {LEVELS[level]} of {where}, on rank {listed(ranks)}"


def listed(things: list[Any]) -> str:
    """A few of them, and how many more there are."""
    more = [f"and {len(things) - SHOWN} more (metrics.jsonl)"] if len(things) > SHOWN else []
    return ", ".join([*map(str, things[:SHOWN]), *more])


def way_out(level: int) -> str:
    """What to do about it."""
    if level == 0:
        return "leave these recordings out, or build the set again"
    return (
        "lower optim.lr or optim.grad_clip, or bear a few such steps with "
        "--train.nonfinite_patience=N"
    )
