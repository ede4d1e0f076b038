"""Models, and batch norm that no launch changes, against torch's own."""

import pytest
import torch
from torch import nn

from shards.errors import UserError
from toolkit.models import REGISTRY, build
from toolkit.models.batchnorm import GroupedBatchNorm2d, fold_in, last_statistics
from toolkit.schema import ModelConfig


def parameters(name, n_classes):
    model = build(ModelConfig(name=name), n_classes, (128, 250))
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    assert 4.5e6 < parameters("cnn_small", 2) < 5.5e6  # "about 5 M"
    assert parameters("cnn_small", 50) - parameters("cnn_small", 2) == 48 * (352 + 1)
    assert (
        parameters("cnn_tiny", 2)
        == 16 * 9 + 32 * 16 * 9 + 64 * 32 * 9 + 2 * (16 + 32 + 64) + 2 * 65
    )


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_logits_and_gradients(name):
    torch.manual_seed(0)
    model = build(ModelConfig(name=name, norm_batch=2), 5, (64, 50))
    for frames in (50, 77):
        logits = model(torch.randn(4, 1, 64, frames))
        assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_unknown_and_too_small():
    with pytest.raises(UserError, match="did you mean cnn_small"):
        build(ModelConfig(name="cnn_smal"), 2, (128, 250))
    with pytest.raises(UserError, match="at least 32 bands"):
        build(ModelConfig(name="cnn_small"), 2, (16, 250))


def test_one_group_is_plain_batch_norm():
    torch.manual_seed(0)
    ours, theirs = GroupedBatchNorm2d(3, 8), nn.BatchNorm2d(3)
    for _ in range(4):
        x = torch.randn(8, 3, 5, 6) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
        fold_in([ours], last_statistics([ours]))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_microbatches_change_nothing():
    torch.manual_seed(0)
    whole, parts = GroupedBatchNorm2d(3, 4), GroupedBatchNorm2d(3, 4)
    x = torch.randn(16, 3, 5, 6)
    together = whole(x)
    apart, seen = [], []
    for chunk in x.split(8):
        apart.append(parts(chunk))
        seen.append([s.clone() for s in last_statistics([parts])])
    torch.testing.assert_close(torch.cat(apart), together)
    fold_in([whole], last_statistics([whole]))
    fold_in([parts], [sum(s) / 2 for s in zip(*seen, strict=True)])
    torch.testing.assert_close(parts.running_var, whole.running_var)
    means = torch.stack([g.mean(dim=(0, 2, 3)) for g in x.split(4)]).mean(0)
    torch.testing.assert_close(whole.running_mean, 0.1 * means)
