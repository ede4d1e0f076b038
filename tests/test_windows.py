"""Windows of a sample in time, its pace, and evaluations that average them."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import forked
from runs import config_file
from safetensors.torch import load_file
from scipy.stats import chisquare, kstest
from test_augment import augment, batch, noise_like, seen

from shards.index import open_set
from shards.read import Reader
from toolkit.augment import Transform
from toolkit.effects import heard, window
from toolkit.models import build
from toolkit.schema import ModelConfig

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")


def transform(how="none", **words):
    return Transform(np.zeros(4, np.float32), np.ones(4, np.float32), CPU, how, **words)


def bursts(count, frames=60):
    """Silence around two pieces of noise; the frames that are heard, by plain numpy."""
    x = noise_like(count, (4, frames)).float()
    x[:, :, :13] = x[:, :, 20:41] = x[:, :, 50:] = -100
    x.clamp_(min=-60).masked_fill_(x < -99, -100)
    level = x.numpy().max(axis=1)
    return x, [np.flatnonzero(row >= row.max() - 40) for row in level]


def test_heard_frames_are_those_within_40_db_of_the_peak():
    x, expected = bursts(50)
    assert all(f.min() >= 13 and f.max() < 50 and not set(f) & set(range(20, 41)) for f in expected)
    for share in (0.0, 0.31, 0.5, 0.999):
        found = heard(x, np.full(50, share)).tolist()
        assert found == [f[int(share * len(f))] for f in expected]
    assert heard(torch.full((2, 4, 6), -100.0), np.array([0.0, 0.99])).tolist() == [0, 5]


@pytest.mark.parametrize("rate", [0.77, 1.0, 1.3])
def test_window_reads_on_lines_between_frames_and_goes_round(rate):
    x = noise_like(3, (2, 17)).float()
    anchor, before = torch.tensor([0, 8, 16]), np.array([0.0, 5.0, 20.0])
    found = window(x, anchor, before, np.full(3, rate), 40).numpy()
    for b in range(3):
        places = anchor[b].item() + (np.arange(40) - before[b]) * rate
        for band in range(2):
            expected = np.interp(places, np.arange(17), x[b, band].numpy(), period=17)
            np.testing.assert_allclose(found[b, band], expected, atol=1e-3)
    if rate == 1:
        assert np.array_equal(found[1, :, :17], np.roll(x[1].numpy(), -3, axis=1))


def test_windows_begin_everywhere_and_hold_what_is_heard():
    x = torch.arange(30.0).expand(6000, 2, 30)  # within 40 dB: all of it is heard
    first = seen(6000, (2, 30), x, crop_frames=10)[:, 0, 0].astype(int)
    assert chisquare(np.bincount(first, minlength=30)).pvalue > 1e-3
    click = torch.full((6000, 2, 30), -100.0)
    click[:, :, 11] = 0
    cut = seen(6000, (2, 30), click, crop_frames=10)
    assert cut.shape == (6000, 2, 10) and ((cut == 0).sum(axis=2) == 1).all()
    assert chisquare(np.bincount(cut[:, 0].argmax(axis=1), minlength=10)).pvalue > 1e-3


@pytest.mark.parametrize("frames", [0, 9])
def test_pace_is_uniform_in_its_logarithm(frames):
    x = torch.arange(2000.0).expand(4000, 1, 2000)
    slopes = np.diff(seen(4000, (1, 2000), x, time_scale=1.25, crop_frames=frames), axis=2)
    rate = np.median(slopes, axis=(1, 2))
    exponent = np.log(rate) / math.log(1.25)
    assert np.abs(exponent).max() <= 1.002
    assert kstest(exponent, "uniform", (-1, 2)).pvalue > 1e-3
    assert np.array_equal(seen(4, (1, 2000), x[:4], time_scale=1.0), x[:4].numpy())


def test_peak_puts_the_loudest_cell_at_2_and_the_floor_at_minus_2():
    x = torch.tensor([[[10.0, -30.0], [-70.0, -100.0]]], dtype=torch.float16)
    assert transform("peak")(x).tolist() == [[[[2.0, 0.0], [-2.0, -2.0]]]]
    assert transform("peak", top_db=40.0)(x - 20).tolist() == [[[[2.0, -2.0], [-2.0, -2.0]]]]
    chain = augment((4, 60), how="peak", time_masks=3, time_width=50, mask_db=-120)
    x = noise_like(8, (4, 60))  # what is hidden may be the peak: evaluation hides nothing
    found = chain(batch(8, (4, 60), x=x), 1)[0][:, 0]
    hidden = found == -2
    assert hidden.any() and torch.equal(found[~hidden], chain.transform(x)[:, 0][~hidden])


def test_an_evaluation_looks_at_what_is_heard_from_its_start_to_its_end():
    x, frames = bursts(20)
    views = list(transform(crops=4, frames=9).views(x))
    assert len(views) == 4 and all(view.shape == (20, 1, 4, 9) for view in views)
    for k, view in enumerate(views):
        middle = np.array([f[int((k + 0.5) / 4 * len(f))] for f in frames])
        places = (middle[:, None] - 4 + np.arange(9)) % 60
        expected = np.take_along_axis(x.numpy(), places[:, None], axis=2)
        assert np.array_equal(view[:, 0].numpy(), expected)
    whole = list(transform(crops=2).views(x))  # rolled: nothing is lost
    assert all(torch.equal(view[:, 0].sort(2)[0], x.sort(2)[0]) for view in whole)
    assert [torch.equal(v[:, 0], x) for v in transform().views(x)] == [True]


def test_scores_are_of_the_mean_log_probability_over_windows(tone_set, tmp_path):
    """A training to its end; its predictions against windows cut and averaged here."""
    config = config_file(
        tmp_path, tone_set, "", run={"name": "w"}, train={"epochs": 1},
        data={"normalize": "peak", "crops": 3, "check": False},
        augment={"crop_frames": 11, "time_scale": 1.2},
    )  # fmt: skip
    assert forked(config)[0] == 0
    folder, shard_set = tmp_path / "w" / "fold-0", open_set(tone_set)
    info = json.loads((folder / "model.json").read_text())
    assert info["windows"] == {"count": 3, "frames": 11}
    assert info["normalisation"]["by"] == "peak" and info["normalisation"]["top_db"] == 80
    model = build(ModelConfig(**info["model"]), 3, (shard_set.shape[0], 11)).eval()
    model.load_state_dict(load_file(folder / "best.safetensors"))
    numbers = np.flatnonzero(shard_set.index["fold"] == 0)
    with Reader(shard_set) as reader:
        x = reader.read(numbers).astype(np.float32)
    expected = []
    for sample in x:
        level = sample.max(axis=0)
        frames = np.flatnonzero(level >= level.max() - 40)
        cuts = [
            np.take(sample, np.arange(-5, 6) + frames[int(k * len(frames))], 1, mode="wrap")
            for k in (1 / 6, 3 / 6, 5 / 6)
        ]
        views = np.stack([np.maximum(c - c.max(), -80) / 20 + 2 for c in cuts])[:, None]
        with torch.no_grad():
            mean = F.log_softmax(model(torch.from_numpy(views)), dim=1).mean(0)
        expected.append(mean.softmax(0).numpy())
    rows = list(csv.reader((folder / "predictions.csv").open()))
    found = np.array([row[-3:] for row in rows[1:] if row[0] == "segment"], float)
    np.testing.assert_allclose(found, expected, atol=1e-4)
