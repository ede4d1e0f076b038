"""FusedStep against the optimisers of torch that it stands in for."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from toolkit.fused import FusedStep
from toolkit.optim import make_optimizer, set_rate
from toolkit.schema import OptimConfig

WORDS = [
    {"name": "adamw"},
    {"name": "adam", "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.0},
]


def two(device="cpu", **words):
    """A model and its optimiser, twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(3)).to(device)
    model(torch.zeros(1, 1, 8, 8, device=device))
    models = model.to(memory_format=torch.channels_last), deepcopy(model)
    return models, [make_optimizer(m, OptimConfig(**words)) for m in models]


def give_gradients(models, seed, all_of_them=True):
    """The same random gradients to both."""
    for model in models:
        random = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=random).to(p.device)
            p.grad = gradient.to(memory_format=torch.channels_last) if p.ndim == 4 else gradient
        if not all_of_them:
            p.grad = None


def state_of(optimizer):
    found = optimizer.state_dict()["state"]
    return {
        (p, k): v.clone() for p, entry in found.items() for k, v in entry.items() if v is not None
    }


def compare(words, device="cpu"):
    """Eight steps of both."""
    models, (theirs, ours) = two(device, **words)
    step, taken = FusedStep(ours), []
    ours.register_step_pre_hook(lambda *_: taken.append(n))
    for n in range(8):
        give_gradients(models, n, all_of_them=n != 3)  # a parameter without one is left alone
        if n == 5:  # as a checkpoint is taken up
            ours.load_state_dict(deepcopy(ours.state_dict()))
        for optimizer in (theirs, ours):
            set_rate(optimizer, 0.1 / (n + 1))
        theirs.step()
        step()
        for there, here in zip(*(m.parameters() for m in models), strict=True):
            assert torch.equal(there, here), n
        there, here = state_of(theirs), state_of(ours)
        assert there.keys() == here.keys()
        assert all(torch.equal(there[key], here[key]) for key in there)
    assert taken == [3]  # else by the kernel


@pytest.mark.parametrize("words", WORDS)
def test_it_is_the_optimisers_step_bit_for_bit(words):
    compare(words)


def test_without_a_kernel_it_is_the_optimisers_own():
    models, _ = two()
    theirs, ours = (torch.optim.AdamW(m.parameters(), 0.1, foreach=True) for m in models)
    step = FusedStep(ours)
    for n in range(3):
        give_gradients(models, n)
        theirs.step()
        step()
    assert all(map(torch.equal, *(list(m.parameters()) for m in models)))
