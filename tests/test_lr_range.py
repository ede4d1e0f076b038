"""The learning rate range test: where the loss falls fastest, and what lr_find says."""

import numpy as np
import pytest
from processes import on_ranks
from runs import config_file, configured

from toolkit.__main__ import main
from toolkit.lr_range import steepest, sweep


def test_the_steepest_descent_is_where_the_curve_says():
    place = np.arange(100)
    fall = 2.3 - 1.5 / (1 + np.exp(-(place - 60) / 4))  # steepest at 60, by construction
    rise = np.exp(np.maximum(0, place - 80) / 2.0) - 1
    noise = 0.02 * np.random.default_rng(0).normal(size=100)
    smooth, found = steepest(fall + rise + noise)
    assert abs(found - 60) <= 3
    np.testing.assert_allclose(smooth[:75], fall[:75], atol=0.06)
    assert steepest(np.append(fall[:70], np.nan))[1] == pytest.approx(60, abs=1)
    assert steepest(2.3 + noise / 10)[1] is None


def test_lr_find_suggests_a_rate_and_leaves_the_run_alone(tone_set, tmp_path):
    file, out = config_file(tmp_path, tone_set), tmp_path / "curve.png"
    words = ["lr_find", file, "--optim.weight_decay=0", f"--out={out}", "--steps=60"]
    assert on_ranks(1, lambda: main(words)) == [0]
    assert out.read_bytes().startswith(b"\x89PNG") and not (tmp_path / "runs").exists()
    for more in ["--lowest=2"], ["--steps=3"], ["--optim.weight_decy=0"], ["--highest=2e-6"]:
        assert on_ranks(1, lambda more=more: main([*words, *more])) == [2], more


def test_a_sweep_raises_the_rate_step_by_step(tone_set, tmp_path):
    config, tried = configured(tone_set, tmp_path), np.geomspace(1e-5, 1e4, 40)
    ((rates, losses),) = on_ranks(1, lambda: sweep(config, tried))
    assert 5 < len(rates) == len(losses) and np.array_equal(rates, tried[: len(rates)])
    assert losses[0] == pytest.approx(np.log(3), abs=0.05)  # an untrained model of 3 classes
    assert losses.min() < 0.9 * losses[0]
