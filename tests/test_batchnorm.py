"""Batch norm that no launch changes, against torch's own."""

import torch
from torch import nn

from toolkit.models.batchnorm import GroupedBatchNorm2d, fold_in, last_statistics


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
