"""One optimiser step: one collective, the same on any ranks, bit for bit where asked."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import on_ranks

from shards.loader import Batch
from shards.order import Order, plan_batch
from toolkit.losses import Loss
from toolkit.models import build
from toolkit.models.batchnorm import (
    fold_in,
    grouped_norms,
    last_statistics,
)
from toolkit.optim import make_optimizer, set_rate
from toolkit.reduction import Reduction
from toolkit.schema import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from toolkit.step import Stepper
from toolkit.strategy import Strategy
from toolkit.world import start

BATCH, GROUP, SHAPE = 16, 2, (16, 20)


def augment(batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.get_default_dtype()
    return batch.x[:, None].to(dtype), torch.nn.functional.one_hot(batch.y, 3).to(dtype)


def make_stepper(
    microbatch=None, exact=False, precision="no", name="adamw", model=None, shape=SHAPE
):
    config = Config(
        run=RunConfig(name="x"),
        data=DataConfig(shards="x"),
        model=model
        or ModelConfig(name="cnn_tiny", norm_batch=GROUP, dropout=0.1 if exact else 0.0),
        optim=OptimConfig(name=name, ema=0.5),
        train=TrainConfig(batch_size=BATCH, microbatch=microbatch, exact=exact),
    )
    accelerator, world = start("no", 1)
    world = replace(world, precision=precision)
    plan = plan_batch(BATCH, microbatch, world.size, GROUP)
    torch.manual_seed(world.rank)  # the first rank's weights are everybody's
    model = build(config.model, 3, shape)
    optimizer = make_optimizer(model, config.optim)
    strategy = Strategy(accelerator, world, model, optimizer, plan, config.optim)
    return Stepper(strategy, augment, config, plan, world, Loss())


def batches(plan, rank, step, shape=SHAPE) -> list[Batch]:
    """What the loader gives to a rank."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, *shape, generator=generator).half()
    y, places = torch.randint(0, 3, (BATCH,), generator=generator), np.arange(BATCH)
    mine = plan.places(rank)
    parts = [slice(i, i + plan.microbatch) for i in range(mine.start, mine.stop, plan.microbatch)]
    return [Batch(x[p], y[p], places[p], places[p]) for p in parts]


def train(stepper, steps=4):
    """Losses, norms, and all weights and averages after some steps."""
    taken = [stepper(batches(stepper.plan, stepper.world.rank, s), s, 0.01) for s in range(steps)]
    tensors = [*stepper.strategy.weights().values(), *stepper.strategy.average.tensors.values()]
    flat = torch.cat([t.detach().flatten().double() for t in tensors])
    return [t.loss for t in taken], [t.norm for t in taken], flat.numpy()


def assert_alike(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


MODELS = {
    "norms": ModelConfig(name="cnn_tiny", norm_batch=GROUP),
    "drops": ModelConfig(
        name="vit_small", norm_batch=GROUP, dim=16, depth=2, heads=2, patch=4, dropout=0.3,
        embed_dropout=0.2, patch_dropout=0.5, drop_path=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_ranks_and_microsteps_train_as_one_batch(name):
    """Ghost batch norm, AdamW, clipping, the average of weights, all that is dropped. Of a ViT's
    weights some have no gradient but rounding: the biases of its keys."""
    model, told = MODELS[name], 3 if name == "norms" else 2
    (expected,) = on_ranks(1, lambda: train(make_stepper(model=model)))
    (found,) = on_ranks(1, lambda: train(make_stepper(4, model=model)))
    assert_alike(found[:told], expected[:told])
    for microbatch in (None, 2):
        first, second = on_ranks(2, lambda m=microbatch: train(make_stepper(m, model=model)))
        assert_alike(first[:told], expected[:told])
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("dtype", "steps", "group", "bound"),
    [(torch.float32, 50, 8, 1e-4), (torch.float64, 10, 4, 1e-13)],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize("name", ["cnn_small", "vit_small"])
def test_many_steps_end_in_the_same_weights_on_1_2_and_3_ranks(
    name, dtype, steps, group, bound, monkeypatch
):
    """With batch norm's statistics, and with dropout. The last maps are one value wide: a norm over
    few samples of them makes float32's rounding grow past 1e-4, one rank's as much as two ranks'.
    float64 leaves room for nothing but rounding, whatever the groups."""
    shape = (32, 32)
    monkeypatch.setitem(globals(), "BATCH", 6 * group)
    model = ModelConfig(name=name, norm_batch=group, dropout=0.1 if name == "vit_small" else 0.0)

    def run():
        torch.set_default_dtype(dtype)
        stepper, losses = make_stepper(model=model, shape=shape), []
        for step in range(steps):
            here = batches(stepper.plan, stepper.world.rank, step, shape)
            losses.append(stepper(here, step, 1e-4).loss)
        tensors = stepper.strategy.weights()
        flat = torch.cat([t.detach().flatten().double() for t in tensors.values()])
        return losses, flat.numpy()

    ((losses, weights),) = on_ranks(1, run)
    for world_size in (2, 3):
        for found, ended in on_ranks(world_size, run):
            np.testing.assert_allclose(found, losses, rtol=max(bound, 1e-6))  # summed in float32
            assert np.linalg.norm(ended - weights) <= bound * np.linalg.norm(weights)


def test_a_step_is_one_collective():
    def count() -> list[int]:
        stepper, calls = make_stepper(4), []
        original = dist.all_reduce
        dist.all_reduce = lambda *words: calls.append(1) or original(*words)
        torch.distributed.broadcast = None  # whatever else would raise
        train(stepper, 3)
        return len(calls)

    assert on_ranks(2, count) == [3, 3]


@pytest.mark.parametrize("name", MODELS)
def test_exact_is_the_same_bits_on_1_2_4_and_8_ranks(name):
    def exactly():
        model = MODELS[name] if name == "drops" else None
        return train(make_stepper(2, exact=True, model=model))

    found = {n: on_ranks(n, exactly) for n in (1, 2, 4, 8)}
    expected = found[1][0]
    for losses, norms, weights in itertools.chain(*found.values()):
        assert (losses, norms) == expected[:2]
        assert np.array_equal(weights, expected[2])
    plain = on_ranks(2, lambda: train(make_stepper(2, model=MODELS[name])))[0]
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
        return reduction.total()[0]

    for world_size in (1, 2, 4, 8):
        assert on_ranks(world_size, total) == [tree.item()] * world_size
    assert leaves.sum().item() != tree.item() or leaves.cumsum(0)[-1].item() != tree.item()


def test_epochs_with_a_short_last_batch_accumulate_to_one_big_batch():
    """27 samples, 16 a step: the second batch of an epoch is filled up from its beginning. Against
    plain PyTorch, to 1e-5."""
    order, generator = Order(27, BATCH, seed=3), torch.Generator().manual_seed(0)
    x, y = torch.randn(27, 16, 20, generator=generator), torch.arange(27) % 3
    assert order.steps_per_epoch == 2
    numbers = [order.batch(step, range(BATCH)) for step in range(6)]

    def accumulated(microbatch):
        stepper = make_stepper(microbatch, name="sgd")
        places, losses = np.arange(BATCH), []
        for step, n in enumerate(numbers, 1):
            parts = [slice(i, i + microbatch) for i in range(0, BATCH, microbatch)]
            microbatches = [Batch(x[n[p]], y[n[p]], n[p], places[p]) for p in parts]
            losses.append(stepper(microbatches, step, 0.05).loss)
        return losses, {name: t.numpy() for name, t in stepper.strategy.weights().items()}

    def plain():
        config = make_stepper(name="sgd").config
        torch.manual_seed(0)
        model, losses = build(config.model, 3, (16, 20)), []
        optimizer, norms = make_optimizer(model, config.optim), grouped_norms(model)
        for n in numbers:
            set_rate(optimizer, 0.05)
            loss = torch.nn.functional.cross_entropy(model(x[n][:, None]), y[n])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            fold_in(norms, last_statistics(norms))
            losses.append(loss.item())
        return losses, {name: t.numpy() for name, t in model.state_dict().items()}

    ((expected, weights),) = on_ranks(1, plain)
    for accumulation in (1, 2, 4):
        ((losses, found),) = on_ranks(1, lambda a=accumulation: accumulated(BATCH // a))
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        for name, value in weights.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_what_overflows_on_one_rank_is_skipped_on_all():
    def overflow():
        stepper = make_stepper(4, precision="fp16")
        before = [t.clone() for t in stepper.strategy.weights().values()]
        taken = []
        for step in (1, 2, 3):
            data = batches(stepper.plan, stepper.world.rank, step)
            if step < 3 and stepper.world.rank == 1:
                data[-1].x[0, 0, 0] = torch.inf
            taken.append(stepper(data, step, 0.01).skipped)
            after = stepper.strategy.weights().values()
            same = all(map(torch.equal, before, after))
            assert same == taken[-1] and all(t.isfinite().all() for t in after)
        return taken, stepper.scale.figures()

    figures = {"loss_scale": 2.0**14, "skipped": 2}
    assert on_ranks(2, overflow) == [([True, True, False], figures)] * 2


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
