"""Learning rates by step, against torch's own schedulers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as oracle

from toolkit.history import drops
from toolkit.optim import learning_rate
from toolkit.schema import OptimConfig

TOTAL, PER_EPOCH, WARMUP = 97, 10, 15


SHARE = 1 / (25 * 1e4)  # where torch's onecycle ends: 1 / (div_factor * final_div_factor)


def torch_rates(schedule, optimizer):
    """torch's own rates for the settings of `test_rates_are_those_of_torch`."""
    left = TOTAL - WARMUP
    after = {
        "constant": lambda: oracle.LambdaLR(optimizer, lambda _: 1.0),
        "cosine": lambda: oracle.CosineAnnealingLR(optimizer, left, eta_min=SHARE),
        "linear": lambda: oracle.LinearLR(optimizer, 1.0, SHARE, left),
        "onecycle": lambda: oracle.OneCycleLR(optimizer, 1.0, TOTAL, cycle_momentum=False),
    }
    if schedule == "onecycle":
        scheduler = after[schedule]()
    else:
        warmup = oracle.LinearLR(optimizer, 1 / (WARMUP + 1), 1.0, WARMUP)
        scheduler = oracle.SequentialLR(optimizer, [warmup, after[schedule]()], [WARMUP])
    for _ in range(TOTAL):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "onecycle"])
def test_rates_are_those_of_torch(schedule):
    config = OptimConfig(lr=1.0, schedule=schedule, warmup_epochs=1.5, end_factor=SHARE)
    expected = list(torch_rates(schedule, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)))
    found = [learning_rate(config, step, TOTAL, PER_EPOCH) for step in range(TOTAL)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert max(found) > 0.999 and len(set(found)) > 15


def test_onecycle_of_any_length_is_that_of_torch():
    for total, rise in ((1, 0.3), (2, 0.5), (3, 0.3), (10, 0.0), (11, 0.9), (40, 0.25)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        try:
            torch_cycle = oracle.OneCycleLR(
                optimizer, 2.0, total, pct_start=rise, cycle_momentum=False
            )
        except ZeroDivisionError:  # torch's own, where the peak is at step 0
            continue
        config = OptimConfig(lr=2.0, schedule="onecycle", pct_start=rise, end_factor=SHARE)
        for step in range(total):
            expected = torch_cycle.get_last_lr()[0]
            assert learning_rate(config, step, total, 1) == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            if step + 1 < total:
                torch_cycle.step()
    peak_first = OptimConfig(lr=2.0, schedule="onecycle", pct_start=0.5)
    assert learning_rate(peak_first, 0, 2, 1) == 2.0


@pytest.mark.parametrize("metric, mode", [("loss", "min"), ("macro_f1", "max")])
@pytest.mark.parametrize(
    "patience, cooldown, threshold", [(0, 0, 1e-4), (2, 0, 0.05), (1, 3, 0.0), (3, 2, 0.01)]
)
def test_the_plateau_is_that_of_torch(metric, mode, patience, cooldown, threshold):
    values = np.random.default_rng(patience).uniform(0.4, 0.6, 60) - 0.002 * np.arange(60)
    config = OptimConfig(
        lr=0.3, schedule="plateau", warmup_epochs=0, plateau_metric=metric, plateau_factor=0.7,
        plateau_patience=patience, plateau_cooldown=cooldown, plateau_threshold=threshold,
        end_factor=1e-3,
    )  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    scheduler = oracle.ReduceLROnPlateau(
        optimizer, mode, 0.7, patience, threshold, cooldown=cooldown, min_lr=3e-4, eps=0
    )
    entries, rates = [], []
    for value in values:
        entries.append({metric: float(value)})
        scheduler.step(value)
        rates.append(learning_rate(config, 50, 60, 1, drops(entries, config)))
        assert rates[-1] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
    assert len(set(rates)) > 3
    assert (min(rates) == pytest.approx(3e-4)) == (patience == 0)  # the floor was reached
