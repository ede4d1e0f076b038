"""SpecAugment's statistics, the learning rate, normalisation against numpy."""

import math

import numpy as np
import pytest
import torch

from shards.index import open_set
from shards.loader import Batch
from shards.read import Reader
from toolkit.augment import Transform, spans, spec_augment
from toolkit.config import AugmentConfig, OptimConfig
from toolkit.optim import learning_rate, make_optimizer
from toolkit.protocol import normalisation, part_masks, select


def batch(size, shape=(40, 100), first=0):
    places = np.arange(first, first + size)
    x = torch.zeros(size, *shape, dtype=torch.float16)
    return Batch(x, torch.zeros(size, dtype=torch.int64), places, places)


def test_masks_are_bands_and_spans_of_the_stated_widths():
    hidden = spec_augment(AugmentConfig(time_masks=1, time_width=20), batch(4000), (1, 2)).numpy()
    assert (hidden == hidden[:, :1, :]).all()  # a time mask covers all bands
    widths = hidden[:, 0].sum(axis=1)
    assert set(widths) == set(range(21))
    assert abs(widths.mean() - 10) < 4 * np.sqrt(440 / 12 / 4000)
    edges = np.abs(np.diff(np.pad(hidden[:, 0].astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1)
    assert edges.max() == 2  # one piece
    assert hidden[:, 0].any(axis=0).all()  # every frame can be hit, the last one too
    both = spec_augment(AugmentConfig(time_masks=2, freq_masks=2), batch(50), (1, 2)).numpy()
    assert both.all(axis=2).any() and both.all(axis=1).any()
    assert spec_augment(AugmentConfig(), batch(3), (1, 2)) is None


def test_masks_follow_the_place_and_the_step_alone():
    config = AugmentConfig(time_masks=2, freq_masks=2, freq_width=10)
    whole = spec_augment(config, batch(8), (1, 2))
    assert torch.equal(spec_augment(config, batch(3, first=5), (1, 2)), whole[5:])
    assert not torch.equal(spec_augment(config, batch(8), (1, 3)), whole)


def test_span_wider_than_the_axis():
    assert spans(np.array([[0.999, 0.0]]), 60, 10).all()


def test_transform_standardises_and_masks_in_decibels():
    transform = Transform(
        np.array([-50.0, 0.0], np.float32), np.array([10.0, 2.0], np.float32), torch.device("cpu")
    )
    x = torch.tensor([[[-40.0, -60.0], [2.0, 0.0]]], dtype=torch.float16)
    assert transform(x).tolist() == [[[[1.0, -1.0], [1.0, 0.0]]]]
    hidden = torch.tensor([[[True, False], [False, False]]])
    assert transform(x, hidden, -80.0)[0, 0, 0, 0] == -3.0


@pytest.mark.parametrize("how", ["band", "global", "none"])
def test_normalisation_is_that_of_the_training_part_alone(tone_set, how):
    shard_set = open_set(tone_set)
    masks = part_masks(shard_set, "kfold", 1)
    parts = select(shard_set, masks)
    mean, std = normalisation(shard_set, masks["train"], how)
    with Reader(shard_set) as reader:
        x = reader.read(parts["train"]).astype(np.float64)
    axis = {"band": (0, 2), "global": None, "none": ()}[how]
    if how == "none":
        assert (mean == 0).all() and (std == 1).all()
    else:
        np.testing.assert_allclose(mean, np.broadcast_to(x.mean(axis), mean.shape), rtol=1e-5)
        np.testing.assert_allclose(std, np.broadcast_to(x.std(axis), std.shape), rtol=1e-4)


def test_learning_rate_warms_up_and_ends_at_zero():
    config = OptimConfig(lr=1.0, warmup_epochs=2)
    rates = [learning_rate(config, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 21) and rates[20] == 1.0 == max(rates)
    assert rates[60] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert rates[40] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.25)))


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    groups = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay == {id(p): 0.3 if p is model[0].weight else 0.0 for p in model.parameters()}
