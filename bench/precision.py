"""A training step of cnn_small on one thread: eager and compiled, two layouts, float32 and bf16.

Batch 32 of (1, 128, 157): ten classes, 5 s at 16 kHz. The trainer's own step; no data. Each of
--parts is a section of RESULTS.md; to compile takes a minute or two a number format, in one layout.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from time import perf_counter

import numpy as np
import torch
from side_by_side import arguments, conditions, one_thread, publish, ratio, take_turns, times

from shards.loader import Batch
from shards.order import plan_batch
from toolkit.losses import Loss
from toolkit.models import build
from toolkit.optim import make_optimizer
from toolkit.precision import arrange
from toolkit.schema import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from toolkit.step import Stepper
from toolkit.strategy import Strategy
from toolkit.world import start

SHAPE, SIZE, STEPS = (128, 157), 32, 2


def contestant(precision: str, compile: str, channels_last: bool) -> Callable[[], None]:
    """Some steps of a trainer with these settings, which has taken its first one."""
    train = TrainConfig(compile=compile, channels_last=channels_last)
    data, model = DataConfig(shards=""), ModelConfig(name="cnn_small")
    config = Config(run=RunConfig(name=""), data=data, model=model, train=train)
    accelerator, world = start("no", 1)
    world = replace(world, precision=precision)
    torch.manual_seed(0)
    module = arrange(build(config.model, 10, SHAPE), train, world)
    optimizer, plan = make_optimizer(module, config.optim), plan_batch(SIZE, None, 1, SIZE // 2)
    strategy = Strategy(accelerator, world, module, optimizer, plan, config.optim)
    x, places = torch.randn(SIZE, 1, *SHAPE), np.arange(SIZE)
    batch = Batch(x, torch.arange(SIZE) % 10, places, places)
    stepper = Stepper(strategy, lambda b, step: (b.x, b.y), config, plan, world, Loss())

    def steps() -> None:
        for step in range(STEPS):
            stepper([batch], step + 1, 1e-4)

    return steps


def race(part: str, rounds: int) -> list[str]:
    """Eager float32, and what is `eager` or `compiled`, one after the other."""
    racers, first = {}, []
    settings = product(("no", "bf16"), ("off", "default"), (False, True))
    for precision, compile, last in settings:
        name = {"no": "float32", "bf16": "bf16"}[precision]
        name += ", compiled" * (compile != "off") + ", channels_last" * last
        others = (compile == "off") != (part == "eager") or (compile != "off" and not last)
        if name != "float32" and others:
            continue
        racers[name], began = contestant(precision, compile, last), perf_counter()
        racers[name]()
        if compile != "off":
            first.append(perf_counter() - began)
        print(f"{name}: {perf_counter() - began:.1f} s", file=sys.stderr)
    turns = take_turns(racers, rounds)
    lines = [
        conditions(rounds, ["torch"]),
        *([f"To compile took {min(first):.0f} to {max(first):.0f} s."] if first else []),
        "",
        *times(turns, dict.fromkeys(racers, STEPS), "step"),
        "",
        "| times as fast as eager float32, CPU seconds | median | spread |",
        "|---|---|---|",
    ]
    for name in racers:
        ratios = ratio(turns["float32"], turns[name], "cpu")
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        lines.append(f"| {name} | {statistics.median(ratios):.2f}x | {spread} |")
    return lines


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=7, parts="eager,compiled")
    one_thread()
    for part in words.parts.split(","):
        lines, command = race(part, words.rounds), f"precision.py --parts={part}"
        title = f"Layout and number format, {part}"
        publish(f"precision-{part}", title, lines, words.write, command)


if __name__ == "__main__":
    main()
