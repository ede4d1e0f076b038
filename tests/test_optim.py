"""Optimisers, what they decay, and averaged weights, against torch and arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.optim import Average, decays, make_optimizer
from toolkit.schema import OptimConfig


def test_what_decays():
    yes = ["stages.0.conv1.weight", "head.1.weight", "token_mixer.weight", "position.proj.weight"]
    no = ["cls_token", "pos_embed", "encoder.pos_embed", "blocks.0.relative_position_bias_table"]
    no += ["dist_token", "reg_tokens", "embeddings.position_embeddings.weight", "cls", "cls.weight"]
    matrix = torch.zeros(1, 2)
    assert [name for name in yes + no if decays(name, matrix)] == yes
    assert not decays("norm.weight", torch.zeros(2)) and not decays("scale", torch.zeros(()))


@pytest.mark.parametrize("name, after", [("adamw", 1 - 0.1 * 0.5), ("adam", 0.9), ("sgd", 0.905)])
def test_weight_decay_of_each_optimiser(name, after):
    """Gradient 0: AdamW shrinks by lr * decay, Adam steps lr along the sign, SGD by lr * decay and
    Nesterov's share of it."""
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bias = model.bias.item()
    optimizer.step()
    assert model.weight.item() == pytest.approx(after, abs=1e-6)
    assert model.bias.item() == bias


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype, fused", [(torch.complex64, True), (torch.float32, False)])
def test_without_a_fused_kernel_it_trains(name, dtype, fused):
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, dtype=dtype))
    asked = OptimConfig(name=name, lr=0.1, weight_decay=0, fused=fused)
    optimizer = make_optimizer(model, asked)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert (model.weight.real < 1).all() and not optimizer.defaults["fused"]


def test_adam_takes_its_betas():
    parameter = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(parameter.weight)
    config = OptimConfig(name="adam", lr=1.0, weight_decay=0, beta1=0.5, beta2=0.75)
    optimizer = make_optimizer(parameter, config)
    for gradient in (1.0, 3.0):
        parameter.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
    mean, square = (0.25 * 1 + 0.5 * 3) / 0.75, (0.1875 * 1 + 0.25 * 9) / 0.4375
    assert parameter.weight.item() == pytest.approx(-1 - mean / square**0.5, rel=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.97])
def test_the_average_is_that_of_arithmetic(decay):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)
    model = nn.Sequential(*layers)
    average = Average(model.state_dict(keep_vars=True), decay)
    expected = {name: t.numpy().astype(np.float64) for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 31):
        model(torch.randn(4, 1, 4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * tensor.numpy()
    found, trained = average.tensors, {n: t.clone() for n, t in model.state_dict().items()}
    assert found.keys() == expected.keys()
    assert found["1.num_batches_tracked"] == 30  # a number is copied
    del expected["1.num_batches_tracked"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-5, atol=1e-6)
        assert not np.allclose(value, trained[name].numpy(), rtol=1e-3)
    average.swap()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], trained[name]) and tensor.isfinite().all()
        np.testing.assert_allclose(tensor, expected.get(name, 30), rtol=1e-5, atol=1e-6)
