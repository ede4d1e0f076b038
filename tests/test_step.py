"""One optimiser step: one collective, the same on any ranks, bit for bit where asked; no memory."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import on_ranks

from shards.errors import UserError
from shards.loader import Batch
from shards.order import plan_batch
from toolkit.models import build
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.optim import make_optimizer
from toolkit.reduction import Reduction
from toolkit.schema import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from toolkit.step import Stepper
from toolkit.strategy import Strategy
from toolkit.world import World, start

BATCH, GROUP = 16, 2


def augment(batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.x.float()[:, None], torch.nn.functional.one_hot(batch.y, 3).float()


def make_stepper(microbatch=None, exact=False):
    config = Config(
        run=RunConfig(name="x"),
        data=DataConfig(shards="x"),
        model=ModelConfig(name="cnn_tiny", norm_batch=GROUP, dropout=0.1 if exact else 0.0),
        optim=OptimConfig(name="adamw", ema=0.5),
        train=TrainConfig(batch_size=BATCH, microbatch=microbatch, exact=exact),
    )
    accelerator, world = start("no", 1)
    plan = plan_batch(BATCH, microbatch, world.size, GROUP)
    torch.manual_seed(world.rank)  # the first rank's weights are everybody's
    model = build(config.model, 3, (16, 20))
    optimizer = make_optimizer(model, config.optim)
    strategy = Strategy(accelerator, world, model, optimizer, plan, config.optim)
    return Stepper(strategy, augment, config, plan, world)


def batches(plan, rank, step) -> list[Batch]:
    """What the loader gives to a rank."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 16, 20, generator=generator).half()
    y, places = torch.randint(0, 3, (BATCH,), generator=generator), np.arange(BATCH)
    mine = plan.places(rank)
    parts = [slice(i, i + plan.microbatch) for i in range(mine.start, mine.stop, plan.microbatch)]
    return [Batch(x[p], y[p], places[p], places[p]) for p in parts]


def train(stepper, steps=4):
    """Losses, norms, and all weights and averages after some steps."""
    taken = [stepper(batches(stepper.plan, stepper.world.rank, s), s, 0.01) for s in range(steps)]
    tensors = [*stepper.strategy.weights().values(), *stepper.strategy.average.module.parameters()]
    flat = torch.cat([t.detach().flatten().double() for t in tensors])
    return [t.loss for t in taken], [t.norm for t in taken], flat.numpy()


def assert_alike(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_ranks_and_microsteps_train_as_one_batch():
    """Ghost batch norm, AdamW, clipping, the average of weights."""
    (expected,) = on_ranks(1, lambda: train(make_stepper()))
    assert_alike(on_ranks(1, lambda: train(make_stepper(4)))[0], expected)
    for microbatch in (None, 2):
        first, second = on_ranks(2, lambda m=microbatch: train(make_stepper(m)))
        assert_alike(first, expected)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_step_is_one_collective():
    def count() -> list[int]:
        stepper, calls = make_stepper(4), []
        original = dist.all_reduce
        dist.all_reduce = lambda *words: calls.append(1) or original(*words)
        torch.distributed.broadcast = None  # whatever else would raise
        train(stepper, 3)
        return len(calls)

    assert on_ranks(2, count) == [3, 3]


def test_exact_is_the_same_bits_on_1_2_and_4_ranks():
    found = {n: on_ranks(n, lambda: train(make_stepper(2, exact=True))) for n in (1, 2, 4)}
    expected = found[1][0]
    assert_alike(on_ranks(1, lambda: train(make_stepper(2, exact=True)))[0], expected)
    for losses, norms, weights in itertools.chain(*found.values()):
        assert (losses, norms) == expected[:2]
        assert np.array_equal(weights, expected[2])
    plain = on_ranks(2, lambda: train(make_stepper(2)))[0]
    assert not np.array_equal(plain[2], expected[2])  # else the test could not fail


def test_the_tree_of_sums_is_that_of_arithmetic():
    """Leaves of very different sizes, so that another order of adding would show."""
    values = torch.from_numpy(np.random.default_rng(0).normal(size=8) * 10.0 ** np.arange(8))
    leaves = values.float()
    tree = leaves
    while len(tree) > 1:
        tree = tree[::2] + tree[1::2]

    def total() -> float:
        _, world = start("no", 1)
        reduction = Reduction(torch.nn.Linear(1, 1), world, 1, exact=True)
        size = 8 // world.size
        for leaf in leaves[world.rank * size : (world.rank + 1) * size]:
            reduction.add(leaf)
        return reduction.total().item()

    for world_size in (1, 2, 4, 8):
        assert on_ranks(world_size, total) == [tree.item()] * world_size
    assert leaves.sum().item() != tree.item() or leaves.cumsum(0)[-1].item() != tree.item()


class Small(GroupedBatchNorm2d):
    """Has no memory for more than `most` samples on one rank."""

    most, rank = 4, 0

    def forward(self, x):
        if len(x) > self.most and World.rank_here == self.rank:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def test_out_of_memory_on_one_rank_all_halve_and_take_the_same_step():
    def starved():
        stepper = make_stepper()
        World.rank_here = stepper.world.rank
        norms = stepper.reduction.norms
        norms[-1].__class__ = Small  # after other layers have gone forward
        return (train(stepper), stepper.microbatch, stepper.config.train.microbatch)

    (expected,) = on_ranks(1, lambda: train(make_stepper()))
    for found, microbatch, configured in on_ranks(2, starved):
        assert (microbatch, configured) == (4, None)
        assert_alike(found, expected)


def test_out_of_memory_with_the_smallest_microbatch_says_what_to_lower():
    def starved():
        stepper = make_stepper()
        World.rank_here, Small.most = 0, 0
        stepper.reduction.norms[0].__class__ = Small
        with pytest.raises(UserError, match=r"norm_batch=2 at a time"):
            train(stepper)
        return stepper.microbatch

    assert on_ranks(2, starved) == [2, 2]


def test_what_one_rank_wishes_all_know():
    def wish():
        stepper = make_stepper()
        rank = stepper.world.rank
        wishes = [frozenset(), frozenset(["save"] * rank), frozenset(["stop"] * (1 - rank))]
        return [
            sorted(stepper(batches(stepper.plan, rank, s), s, 0.01, w).asked)
            for s, w in enumerate(wishes)
        ]

    assert on_ranks(2, wish) == [[[], ["save"], ["stop"]]] * 2
