"""Each augmentation's statistics, alike on every launch; normalisation against numpy."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from shards.index import ShardSet, open_set
from shards.loader import Batch
from shards.order import plan_batch
from shards.read import Reader
from toolkit.augment import SWITCHES, Augment, Transform
from toolkit.effects import filter_curves, spans
from toolkit.protocol import normalisation, part_masks, select
from toolkit.schema import AugmentConfig

CLASSES = 3
EVERYTHING = {
    "time_masks": 1, "time_width": 3, "freq_masks": 1, "freq_width": 2, "time_roll": 40,
    "time_shift": 5, "mix": "between_class", "gain_db": 6, "eq_db": 6, "noise_db": 2,
    "cutouts": 2, "cutout_frames": 3, "cutout_bands": 3, "crop_frames": 50, "time_scale": 1.3,
}  # fmt: skip


def batch(size, shape=(40, 100), first=0, x=None):
    places = np.arange(first, first + size)
    x = torch.zeros(size, *shape, dtype=torch.float16) if x is None else x
    return Batch(x, torch.from_numpy(places % CLASSES), places, places)


def augment(shape=(40, 100), seed=1, group=4, how="none", **words):
    info = {"shape": list(shape), "classes": list("abc"), "mel": {"fmin": 0.0, "fmax": 8000.0}}
    flat = np.zeros(shape[0], np.float32), np.ones(shape[0], np.float32)
    transform = Transform(*flat, torch.device("cpu"), how)
    return Augment(AugmentConfig(**words), ShardSet(Path("unread"), info), transform, seed, group)


def seen(size=4000, shape=(40, 100), x=None, step=2, **words):
    """The batch in dB, as numpy."""
    return augment(shape, **words).decibels(batch(size, shape, x=x), step).seen.numpy()


def noise_like(size, shape, seed=0):
    """Cells that all differ, in dB, as they are stored."""
    return torch.from_numpy(
        np.random.default_rng(seed).normal(-30, 15, (size, *shape)).astype(np.float16)
    )


def uniform_over(values, low, high):
    """Whether they may be uniform between the two, by Kolmogorov and Smirnov."""
    assert values.min() >= low and values.max() <= high
    return kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def test_masks_are_bands_and_spans_of_the_stated_widths():
    hidden = seen(shape=(3, 100), time_masks=1, time_width=20) == -80
    assert (hidden == hidden[:, :1, :]).all()  # a time mask covers all bands
    widths = hidden[:, 0].sum(axis=1)
    assert set(widths) == set(range(21))
    assert chisquare(np.bincount(widths)).pvalue > 1e-3
    edges = np.abs(np.diff(np.pad(hidden[:, 0].astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1)
    assert edges.max() == 2  # one piece
    assert hidden[:, 0].any(axis=0).all()  # every frame can be hit, the last one too
    both = seen(50, time_masks=2, freq_masks=2, mask_db=-33) == -33
    assert both.all(axis=2).any() and both.all(axis=1).any()


def test_span_wider_than_the_axis():
    assert spans(np.array([[0.999, 0.0]]), 60, 10).all()
    assert not spans(np.array([[0.999, 0.999]]), 0, 10).any()


@pytest.mark.parametrize("frames, furthest, places", [(100, 10, 21), (100, 50, 100), (7, 99, 7)])
def test_roll_is_uniform_and_loses_nothing(frames, furthest, places):
    x = torch.arange(frames).half().expand(3000, 2, frames)
    rolled = seen(3000, (2, frames), x, time_roll=furthest)
    offsets = (-rolled[:, 0, 0].astype(int)) % frames
    for row, offset in zip(rolled[:50], offsets, strict=False):
        np.testing.assert_array_equal(row, np.roll(x[0].numpy(), offset, axis=1))
    found = np.bincount(offsets, minlength=frames)
    signed = (np.arange(frames) + frames // 2) % frames - frames // 2
    assert ((found > 0) == (np.abs(signed) <= furthest)).all()
    assert chisquare(found[found > 0]).pvalue > 1e-3 and (found > 0).sum() == places


@pytest.mark.parametrize("padding", ["silence", "reflect"])
@pytest.mark.parametrize("frames, furthest", [(50, 9), (5, 4), (5, 99), (1, 3)])
def test_shift_is_a_crop_of_the_padded_sample(padding, frames, furthest):
    x = noise_like(400, (3, frames))
    shifted = seen(400, (3, frames), x, time_shift=furthest, shift_padding=padding)
    pad = min(furthest, frames)
    how = {"constant_values": -100} if padding == "silence" else {"mode": "reflect"}
    wide = np.pad(x.float().numpy(), ((0, 0), (0, 0), (pad, pad)), **how)
    crops = np.stack([wide[:, :, pad - s : pad - s + frames] for s in range(-pad, pad + 1)], 1)
    same = (crops == shifted[:, None]).all(axis=(2, 3))
    assert same.any(axis=1).all() and same.any(axis=0).all()
    if frames == 50:
        assert (same.sum(axis=1) == 1).all() and chisquare(same.sum(axis=0)).pvalue > 1e-3


def test_gain_is_one_number_a_sample_and_the_floor_stays():
    found = seen(shape=(2, 3), gain_db=12)
    assert (found == found[:, :1, :1]).all() and uniform_over(found[:, 0, 0], -12, 12)
    floor = torch.full((500, 2, 3), -100.0)
    assert seen(500, (2, 3), floor, gain_db=12).min() == -100


@pytest.mark.parametrize("kind", ["step", "linear"])
def test_equaliser_bands(kind):
    config = AugmentConfig(eq_db=6, eq_kind=kind, eq_bands=4, eq_width=7)
    curves = filter_curves(np.random.default_rng(0).random((3000, 9)), config, 60)
    assert curves.shape == (3000, 60) and np.abs(curves).max() <= 6
    bent = np.abs(np.diff(curves, n=1 if kind == "step" else 2, axis=1)) > 1e-9
    if kind == "step":
        assert set(bent.sum(axis=1)) == {1, 2, 3}  # edges between 2 to 4 bands
        assert chisquare(np.bincount(bent.sum(axis=1))[1:]).pvalue > 1e-3
        edges = [np.flatnonzero(np.pad(row, 1, constant_values=True)) for row in bent]
        widths = [np.diff(row) for row in edges]
        assert all(row.sum() == 60 and row.min() >= 7 for row in widths)
        assert uniform_over(curves[:, 0], -6, 6) and uniform_over(curves[:, -1], -6, 6)
    else:
        assert set(bent.sum(axis=1)) == {1, 2, 3}  # lines that meet at the edges
        assert uniform_over(curves[:, 0], -6, 6)


@pytest.mark.parametrize("n_mels, width", [(2, 6), (3, 1), (8, 100)])
def test_equaliser_of_few_bands(n_mels, width):
    for kind in ("step", "linear"):
        config = AugmentConfig(eq_db=6, eq_kind=kind, eq_width=width)
        curves = filter_curves(np.random.default_rng(0).random((200, 11)), config, n_mels)
        assert curves.shape == (200, n_mels) and np.isfinite(curves).all()
        assert (np.ptp(curves, axis=1) > 0).all()


def test_noise_is_normal_and_of_each_sample_its_own():
    found = seen(600, (16, 50), noise_db=4).reshape(600, -1)
    deviations = found.std(axis=1)
    assert uniform_over(deviations, 0, 4.15)
    standard = found / deviations[:, None]
    assert kstest(standard[:, ::9].ravel()[::5], "norm").pvalue > 1e-3
    assert abs(standard.mean()) < 0.01
    correlation = np.corrcoef(standard) - np.eye(600)
    assert np.quantile(np.abs(correlation), 0.999) < 4 / np.sqrt(800)


def test_cutouts_are_rectangles_of_the_mean():
    x = noise_like(300, (20, 30))
    found = seen(300, (20, 30), x, cutouts=1, cutout_bands=5, cutout_frames=8)
    mean = x.float().numpy().mean(axis=(1, 2))
    cut = found != x.float().numpy()
    np.testing.assert_allclose(found[cut], np.repeat(mean, cut.sum(axis=(1, 2))), rtol=1e-4)
    tall, long = cut.any(axis=2).sum(axis=1), cut.any(axis=1).sum(axis=1)
    assert (cut.sum(axis=(1, 2)) == tall * long).all()
    assert tall.max() == 5 and long.max() == 8
    bands = seen(300, (20, 30), x, cutouts=1, cutout_bands=5) != x.float().numpy()
    assert (bands == bands[:, :, :1]).all() and bands.any()


@pytest.mark.parametrize("shape", [(128, 250), (40, 100), (8, 7), (2, 1)])
@pytest.mark.parametrize("mixing", ["mixup", "between_class"])
def test_the_launch_changes_nothing(shape, mixing):
    """World 1, 2 and 3, each with whole shares and with microbatches of one and two groups."""
    chain = augment(shape, how="sample", **{**EVERYTHING, "mix": mixing})
    x = noise_like(24, shape)
    whole, targets = chain(batch(24, shape, x=x), 5)
    assert not torch.equal(whole[:, 0], x.float()) and (targets.max(1).values < 1).any()
    for world, microbatch in itertools.product((1, 2, 3), (None, 4, 8)):
        plan = plan_batch(24, microbatch, world, 4)
        pieces = [
            chain(batch(plan.microbatch, shape, first, x[first : first + plan.microbatch]), 5)
            for rank in range(world)
            for first in list(plan.places(rank))[:: plan.microbatch]
        ]
        for expected, found in zip((whole, targets), zip(*pieces, strict=True), strict=True):
            assert torch.equal(torch.cat(found), expected)
    assert not torch.equal(chain(batch(24, shape, x=x), 6)[1], targets)
    other = augment(shape, seed=2, how="sample", **EVERYTHING)
    assert not torch.equal(other(batch(24, shape, x=x), 5)[1], targets)


@pytest.mark.parametrize("name", SWITCHES)
def test_one_does_not_change_the_draws_of_another(name):
    """Each alone changes the batch, leaves the caller's as it was, and draws as it does in company.

    In company of masks that hide nothing, that is: others would change what it works on.
    """
    x = noise_like(8, (40, 100)).float()
    kept, words = x.clone(), {k: v for k, v in EVERYTHING.items() if k not in SWITCHES}
    on = seen(8, x=x, **words, **{name: EVERYTHING[name]})
    assert not np.array_equal(on, x.numpy()) and torch.equal(x, kept)
    company = {"time_masks": 2, "cutouts": 1} | {name: EVERYTHING[name]}
    hidden = {"time_width": 0 if name != "time_masks" else 3, "cutout_bands": 0}
    if name not in ("cutouts", "time_masks"):
        np.testing.assert_array_equal(seen(8, x=x, **(words | company | hidden)), on)


def test_off_is_the_stored_batch():
    x = noise_like(4, (40, 100))
    found, y = augment()(batch(4, x=x), 3)
    assert torch.equal(found[:, 0], x.float()) and y.tolist() == [0, 1, 2, 0]


def test_transform_standardises_in_decibels():
    transform = Transform(
        np.array([-50.0, 0.0], np.float32), np.array([10.0, 2.0], np.float32), torch.device("cpu")
    )
    x = torch.tensor([[[-40.0, -60.0], [2.0, 0.0]]], dtype=torch.float16)
    assert transform(x).tolist() == [[[[1.0, -1.0], [1.0, 0.0]]]]


def test_by_sample_each_has_its_own_mean_and_deviation():
    x = noise_like(6, (40, 100)) * torch.arange(6).view(6, 1, 1)  # the first is all one value
    values = x.double().numpy()
    mean, std = values.mean((1, 2), keepdims=True), values.std((1, 2), keepdims=True)
    expected = (values - mean) / np.maximum(std, 1e-2)
    chain = augment(how="sample", time_masks=1, time_width=30)
    np.testing.assert_allclose(chain.transform(x)[:, 0], expected, atol=1e-3)
    found = chain(batch(6, x=x), 1)[0][:, 0].numpy()
    masked = np.broadcast_to((-80 - mean) / np.maximum(std, 1e-2), found.shape)
    hidden = chain.decibels(batch(6, x=x), 1).seen.numpy() == -80
    assert hidden.any()  # what is hidden does not count: evaluation hides nothing
    np.testing.assert_allclose(found, np.where(hidden, masked, expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("how", ["band", "global", "sample", "peak", "none"])
def test_normalisation_is_that_of_the_training_part_alone(tone_set, how):
    shard_set = open_set(tone_set)
    masks = part_masks(shard_set, "kfold", 1)
    parts = select(shard_set, masks)
    mean, std = normalisation(shard_set, masks["train"], how)
    with Reader(shard_set) as reader:
        x = reader.read(parts["train"]).astype(np.float64)
    axis = {"band": (0, 2), "global": None, "sample": (), "peak": (), "none": ()}[how]
    if how in ("none", "sample", "peak"):
        assert (mean == 0).all() and (std == 1).all()
    else:
        np.testing.assert_allclose(mean, np.broadcast_to(x.mean(axis), mean.shape), rtol=1e-5)
        np.testing.assert_allclose(std, np.broadcast_to(x.std(axis), std.shape), rtol=1e-4)
