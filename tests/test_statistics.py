"""Batch norm's statistics taken anew before an evaluation, under the weights as they are."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from processes import forked, on_ranks
from runs import config_file
from safetensors.torch import load_file
from test_step import BATCH, GROUP, SHAPE, batches, make_stepper, train

from shards.order import plan_batch
from toolkit.models import build
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.schema import ModelConfig

pytestmark = pytest.mark.usefixtures("no_pictures")
SETTLES = ModelConfig(name="cnn_tiny", norm_batch=GROUP, norm_steps=3)


def settled(stepper, steps=3):
    """The weights before and after, with batch norm's statistics, and what is left of gradients."""
    train(stepper, 2)
    before = {name: t.detach().numpy() for name, t in stepper.strategy.weights().items()}
    before = {name: t.copy() for name, t in before.items()}
    rank, first = stepper.world.rank, 7
    stepper.settle(first, (batches(stepper.plan, rank, first + n) for n in range(steps)))
    after = {name: t.detach().numpy() for name, t in stepper.strategy.weights().items()}
    return before, after, [p.grad for p in stepper.strategy.module.parameters()]


def test_statistics_settle_to_the_mean_over_whole_batches_under_the_weights_as_they_are():
    """Against torch's own batch norm, which without a momentum keeps the plain mean."""
    ((_, found, left),) = on_ranks(1, lambda: settled(make_stepper(model=SETTLES)))
    oracle = build(SETTLES, 3, SHAPE).train()
    for name, module in list(oracle.named_modules()):
        if isinstance(module, GroupedBatchNorm2d):
            plain = torch.nn.BatchNorm2d(len(module.weight), momentum=None)
            oracle.set_submodule(name, plain)
    oracle.load_state_dict({k: torch.from_numpy(t) for k, t in found.items()}, strict=False)
    for norm in oracle.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.reset_running_stats()
    plan = plan_batch(BATCH, None, 1, GROUP)
    with torch.no_grad():
        for step in (7, 8, 9):
            for group in batches(plan, 0, step)[0].x[:, None].float().split(GROUP):
                oracle(group)
    statistics = [name for name in found if "running" in name]
    assert len(statistics) >= 4 and not any(gradient is not None for gradient in left)
    for name in statistics:
        expected = oracle.state_dict()[name].numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)


def test_statistics_settle_alike_on_any_ranks_and_move_no_weight():
    ((before, expected, _),) = on_ranks(1, lambda: settled(make_stepper(model=SETTLES)))
    for name, now in expected.items():
        assert np.array_equal(before[name], now) != ("running" in name)
    for microbatch in (None, 4):
        run = partial(make_stepper, microbatch, model=SETTLES)
        for _, found, _ in on_ranks(2, lambda run=run: settled(run())):
            for name, value in found.items():
                np.testing.assert_allclose(value, expected[name], rtol=2e-4, atol=1e-6)
    exactly = replace(SETTLES, dropout=0.1)
    found = [on_ranks(n, lambda: settled(make_stepper(2, True, model=exactly))) for n in (1, 2, 4)]
    for _, one, _ in itertools.chain(*found):
        assert all(np.array_equal(t, found[0][0][1][name]) for name, t in one.items())


@pytest.mark.parametrize("ema", [0, 0.9])
def test_a_training_that_takes_them_anew_has_the_same_weights_whatever_stopped_it(
    tone_set, tmp_path, ema
):
    config = config_file(tmp_path, tone_set, optim={"lr": 3e-3})

    def best(name, *words):
        words = config, f"--run.name={name}", f"--optim.ema={ema}", "--train.epochs=3", *words
        code, said = forked(*words)
        assert code == 0, said
        return load_file(tmp_path / "runs" / name / "fold-0/best.safetensors")

    running, anew = best("running"), best("anew", "--model.norm_steps=2")
    for name, value in anew.items():
        assert torch.equal(value, running[name]) != ("running" in name), name
    best("stopped", "--model.norm_steps=2", "--train.max_steps=6")  # inside an epoch
    stopped = best("stopped", "--model.norm_steps=2")
    assert all(torch.equal(value, stopped[name]) for name, value in anew.items())
