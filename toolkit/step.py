"""One optimiser step over one global batch, the same whatever ranks and micro-steps share it."""

import logging
import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from shards.errors import UserError
from shards.loader import Batch
from shards.order import BatchPlan
from shards.randomness import key_one
from toolkit.augment import Augment
from toolkit.losses import Loss
from toolkit.models import dropout
from toolkit.optim import set_rate
from toolkit.precision import LossScale, compiled
from toolkit.reduction import Reduction
from toolkit.schema import Config
from toolkit.strategy import Strategy
from toolkit.watch import at
from toolkit.world import World, sharding

log = logging.getLogger(__name__)

#: torch.manual_seed for one kind of device: it seeds all kinds there could be, half a millisecond.
SEED = {"cpu": torch.default_generator.manual_seed, "cuda": torch.cuda.manual_seed}
WISHES = ("stop", "save")  #: what any rank may ask for, and all ranks then do


class Outcome(NamedTuple):
    """What a step gave, the same on every rank."""

    loss: float  #: mean over the global batch, before the step
    norm: float  #: of its gradient, before clipping
    asked: frozenset[str]  #: those of WISHES that some rank has
    skipped: bool  #: fp16's gradients overflowed: nothing has moved but the loss scale
    finite: bool  #: whether loss and gradient are; else nothing has moved


class Stepper:
    """Takes optimiser steps; halves the microbatch where memory runs out."""

    def __init__(
        self,
        strategy: Strategy,
        augment: Augment,
        config: Config,
        plan: BatchPlan,
        world: World,
        loss: Loss,
    ):
        self.strategy, self.augment, self.config = strategy, augment, config
        self.plan, self.world, self.loss = plan, world, loss
        self.reduction = Reduction(strategy.module, world, 2 + len(WISHES), config.train.exact)
        self.model = compiled(strategy.model, config.train, world)
        self.scale = LossScale(world)
        self.drops = any(getattr(config.model, key) for key in dropout.KEYS)
        self.pieces = 1  #: forwards that a microbatch of the plan has been cut into

    @property
    def microbatch(self) -> int:
        """Samples of a forward."""
        return self.plan.microbatch // self.pieces

    def __call__(
        self, batches: list[Batch], step: int, rate: float, wishes: frozenset[str] = frozenset()
    ) -> Outcome:
        """Step `step` (from 1) over this rank's microbatches of one global batch; every rank calls.

        Raises:
            UserError: not even the smallest microbatch fits into memory, or none but one may be
                taken.
        """
        at("train, step", step)
        strategy = self.strategy
        set_rate(strategy.optimizer, rate)
        while True:
            loss, out_of_memory, *asked = self._sums(batches, step, wishes)
            if not out_of_memory:
                break
            self._halve()
        self.reduction.give()
        clip = self.config.optim.grad_clip or torch.inf
        self.scale.scaler.unscale_(strategy.optimizer)
        norm = strategy.clip(clip)
        skipped = self.scale.decide(norm)
        finite = math.isfinite(loss) and (skipped or math.isfinite(norm))
        if finite and not skipped:
            strategy.step()
            self.reduction.fold_in()
            if strategy.average:
                strategy.average.update(step - self.scale.skipped)
        strategy.forget_gradients()
        asked_for = frozenset(w for w, n in zip(WISHES, asked, strict=True) if n)
        at("after step", step)
        return Outcome(loss, norm, asked_for, skipped, finite)

    def _sums(self, batches: list[Batch], step: int, wishes: frozenset[str]) -> list[float]:
        """Forward, backward, and one collective: loss, ranks out of memory, those that wish."""
        asked = [float(wish in wishes) for wish in WISHES]
        exact, device, given_up = self.config.train.exact, self.world.device, False
        if self.pieces > 1:
            batches = [part for batch in batches for part in cut(batch, self.pieces)]
        loss: torch.Tensor | None = None
        try:
            for batch in batches:
                if exact and loss is not None:
                    self.reduction.add(loss)
                    loss = None
                share = self.micro_step(batch, step, last=batch is batches[-1])
                loss = share if loss is None else loss + share
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if sharding():  # the others wait inside a collective
                raise MemoryError(f"{error}; lower train.microbatch={self.microbatch}") from error
            given_up = True
        if given_up and device.type == "cuda":  # outside `except`, which holds the tensors' frames
            torch.cuda.empty_cache()
        loss = torch.zeros((), device=device) if loss is None else loss
        self.reduction.add(loss, [float(given_up), *asked], given_up)
        at("collective of step", step)
        return self.reduction.total()

    @torch.no_grad()
    def settle(self, step: int, steps: Iterable[list[Batch]]) -> None:
        """Have batch norm evaluate by the plain mean of its statistics over the global batches of
        `step` and of those after it, under the weights as they are now: running ones are of weights
        that have moved on since (Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021)."""
        if not self.reduction.norms:
            return
        zero = torch.zeros((), device=self.world.device)
        for n, batches in enumerate(steps):
            at("statistics, step", step + n)
            for part in [part for batch in batches for part in cut(batch, self.pieces)]:
                x, _ = self.inputs(part, step + n)
                self.strategy.module(x)
                self.reduction.hold()
                if self.config.train.exact:
                    self.reduction.add(zero)
            if not self.config.train.exact:
                self.reduction.add(zero)
            self.reduction.total()
            self.reduction.fold_in(1 / (n + 1))

    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits (B, K) of one microbatch, and its targets (B,) or (B, K)."""
        x, y = self.inputs(batch, step)
        return self.model(x), y

    def inputs(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model sees of one microbatch, (B, 1, M, T), and targets; dropout is seeded."""
        # Dropout is a function of the place in the global batch, whoever computes it.
        places = batch.places[:: self.config.model.norm_batch if self.drops else len(batch.places)]
        keys = [key_one(self.config.train.seed, step, place) >> 1 for place in places.tolist()]
        SEED.get(self.world.device.type, torch.manual_seed)(keys[0])  # of models that are not ours
        dropout.seed(keys, self.world.device)
        return self.augment(batch, step)

    def micro_step(self, batch: Batch, step: int, last: bool) -> torch.Tensor:
        """Forward and backward of one microbatch; its share of the global batch's mean loss.

        Microbatches are of one size, so the mean of their means is the mean over the global batch.
        """
        strategy, plan = self.strategy, self.plan
        parts = plan.accumulation * self.pieces
        everywhere = parts * plan.world_size
        count = everywhere if strategy.whole else parts  # else: the mean over ranks is taken
        with nullcontext() if strategy.whole else strategy.micro_step(last):
            logits, y = self.forward(batch, step)
            loss = self.loss(logits, y)
            share = loss if count == 1 else loss / count
            strategy.backward(self.scale.scaler.scale(share))
            self.reduction.hold()
            if self.config.train.compile == "reduce-overhead" and not last:
                own_gradients(strategy.model)
        loss = loss.detach()
        return loss if everywhere == 1 else loss.double() / everywhere

    def _halve(self) -> None:
        """Cut microbatches further, into whole groups of batch norm; the config's numbers stay."""
        self.strategy.forget_gradients()
        group, size = self.config.model.norm_batch, self.microbatch
        if self.config.train.exact:  # fewer samples a forward give other bits
            raise UserError(
                f"out of memory with train.microbatch={size}, which train.exact=true keeps to; "
                "lower it, or take a smaller model"
            )
        fitting = [n for n in range(2, size // group + 1) if size % (n * group) == 0]
        if not fitting:
            raise UserError(
                f"out of memory with {size} samples a forward, and batch norm takes model."
                f"norm_batch={group} at a time; lower that, or take a smaller model"
            )
        self.pieces *= fitting[0]
        if self.world.is_main:
            log.warning(
                "out of memory: train.microbatch %d -> %d, accumulation %d; the same step again",
                size, self.microbatch, self.plan.accumulation * self.pieces,
            )  # fmt: skip


def own_gradients(model: nn.Module) -> None:
    """Copy gradients out of memory that the next forward of a CUDA graph writes over."""
    for p in model.parameters():
        p.grad = None if p.grad is None else p.grad.clone()


def cut(batch: Batch, pieces: int) -> list[Batch]:
    """A microbatch in equal parts, in its order."""
    size = len(batch.numbers) // pieces
    parts = [slice(i, i + size) for i in range(0, len(batch.numbers), size)]
    return [Batch(batch.x[p], batch.y[p], batch.numbers[p], batch.places[p]) for p in parts]
