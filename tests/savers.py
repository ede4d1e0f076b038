"""Checkpoints of a linear layer, for tests of what is saved, kept and loaded."""

from pathlib import Path

import numpy as np
import torch

from shards.draws import Weighted
from shards.index import ShardSet
from shards.order import Order, plan_batch
from toolkit import world
from toolkit.saver import Saver
from toolkit.schema import OptimConfig, TrainConfig
from toolkit.strategy import Strategy

INFO = {"classes": ["a", "b"], "samples": 9, "shards": [{"sha256": "1"}, {"sha256": "2"}]}
INFO["files"] = {"index.npy": {"sha256": "3"}}


def make(folder: Path, width=2, info=None, ema=0.9, microbatch=None, weight=1.0, **train):
    """Checkpoints of a linear layer with AdamW, and a function that takes a step."""
    accelerator, here = world.start("no", 1)
    torch.manual_seed(0)
    model, plan = torch.nn.Linear(3, width), plan_batch(4, microbatch, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
    strategy = Strategy(accelerator, here, model, optimizer, plan, OptimConfig(ema=ema))
    shard_set = ShardSet(folder, info or INFO)
    draw = Weighted([np.array([1, 1, weight])], 3, 3, 0)
    order, config = Order(3, 3, 0, draw=draw), TrainConfig(**train)
    saver = Saver(folder, strategy, shard_set, config, here, plan, order, target=99)

    def step(n: int = 1) -> None:
        model(torch.ones(4, 3)).square().mean().backward()
        strategy.optimizer.step()
        strategy.optimizer.zero_grad()
        strategy.average.update(n)

    return saver, step


def state(step: int, *losses: float) -> dict:
    """A state of `step`, after epochs of one step with these losses."""
    entries = [{"step": n, "epoch": n, "loss": loss} for n, loss in enumerate(losses, 1)]
    return {"step": step, "history": entries, "scaler": {"scale": 65536.0}}


def copied(strategy) -> dict:
    groups = strategy.tensors()
    return {part: {n: t.clone() for n, t in groups[part].items()} for part in groups}


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys() and one
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
