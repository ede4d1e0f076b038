"""Which layers compute in which number format."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from toolkit.models import REGISTRY, build
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.precision import autocast
from toolkit.schema import ModelConfig
from toolkit.world import World

CPU = torch.device("cpu")


NORMS = (GroupedBatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", [n for n in REGISTRY if not n.endswith(("medium", "large"))])
def test_norms_compute_in_float32(name, precision):
    """Their output is that of float64, rounded once; convolutions round their operands."""
    torch.manual_seed(0)
    model = build(ModelConfig(name=name, norm_batch=2), 5, (64, 50))
    autocast(model, World(0, 1, CPU, precision))
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
