"""Batch norm that no launch changes, against torch's own; in which number format norms compute."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from toolkit.models import REGISTRY, build
from toolkit.models.batchnorm import GroupedBatchNorm2d, fold_in, last_statistics
from toolkit.precision import autocast
from toolkit.schema import ModelConfig
from toolkit.world import World


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


NORMS = (GroupedBatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", [n for n in REGISTRY if not n.endswith(("medium", "large"))])
def test_norms_compute_in_float32(name, precision):
    """Their output is that of float64, rounded once; convolutions round their operands."""
    torch.manual_seed(0)
    model = build(ModelConfig(name=name, norm_batch=2), 5, (64, 50))
    autocast(model, World(0, 1, torch.device("cpu"), precision))
    errors, dtypes = {}, {}

    def compare(module, words, output):
        oracle = deepcopy(module).double()
        oracle._forward_hooks.clear()
        exact = oracle(words[0].double())
        scale = exact.abs().clamp(min=1e-2)
        errors[module] = ((output.double() - exact).abs() / scale).max().item()
        dtypes[module] = output.dtype
        if isinstance(module, GroupedBatchNorm2d):
            assert module.step_var.dtype == torch.float32
            torch.testing.assert_close(
                module.step_var.double(), oracle.step_var, rtol=1e-5, atol=1e-9
            )

    for module in model.modules():
        if isinstance(module, (*NORMS, nn.Conv2d, nn.Linear)):
            module.register_forward_hook(compare)
    model(torch.randn(4, 1, 64, 50))
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    others = [module for module in errors if not isinstance(module, NORMS)]
    assert {dtypes[module] for module in others} == {lower}
    half = torch.finfo(lower).eps / 2
    for module in errors.keys() - others:
        assert errors[module] <= 1.25 * half, module  # and float32's own rounding
    assert max(errors[module] for module in others) > 2 * half
