"""Each augmentation beside a training step of cnn_small, on one thread of a CPU.

    python bench/augment.py [--rounds=7] [--batch=32] [--bands=128] [--frames=250] [--write]

A turn is one step, or ten batches augmented and standardised.
"""

import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import Contestant, arguments, conditions, one_thread, publish, take_turns

from shards.index import ShardSet
from shards.loader import Batch
from toolkit.augment import Augment, Transform
from toolkit.models import build
from toolkit.optim import make_optimizer
from toolkit.schema import AugmentConfig, ModelConfig, OptimConfig

BATCHES = 10
ON: dict[str, dict[str, float | str]] = {
    "standardised, no augmentation": {},
    "SpecAugment, 2 + 2 masks": {
        "time_masks": 2, "time_width": 30, "freq_masks": 2, "freq_width": 16,
    },
    "time roll and shift": {"time_roll": 125, "time_shift": 25},
    "mixup": {"mix": "mixup"},
    "between-class mixing": {"mix": "between_class"},
    "gain": {"gain_db": 6},
    "FilterAugment": {"eq_db": 6},
    "Gaussian noise": {"noise_db": 3},
    "1 cutout": {"cutouts": 1},
}  # fmt: skip


def step(x: torch.Tensor, y: torch.Tensor) -> Contestant:
    """Forward, backward and AdamW of cnn_small."""
    model = build(ModelConfig(name="cnn_small"), 10, (x.shape[1], x.shape[2]))
    optimizer = make_optimizer(model, OptimConfig())

    def run() -> None:
        F.cross_entropy(model(x.float()[:, None]), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    """Take turns and print the table."""
    words = arguments(__doc__.partition("\n")[0], rounds=7, batch=32, bands=128, frames=250)
    one_thread()
    shape = words.bands, words.frames
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(-40, 15, (words.batch, *shape)).astype(np.float16))
    batch = Batch(x, torch.arange(words.batch) % 10, np.arange(words.batch), np.arange(words.batch))
    info = {"shape": shape, "classes": list("abcdefghij"), "mel": {"fmin": 0.0, "fmax": 8000.0}}
    flat = np.zeros(words.bands, np.float32), np.ones(words.bands, np.float32)
    transform = Transform(*flat, torch.device("cpu"))

    def chain(config: AugmentConfig) -> Contestant:
        augment = Augment(config, ShardSet(Path("made-up"), info), transform, 0, 16)

        def run() -> None:
            for n in range(BATCHES):
                augment(batch, n)

        return run

    everything = {key: value for some in ON.values() for key, value in some.items()}
    contestants = {name: chain(AugmentConfig(**some)) for name, some in ON.items()}
    contestants["all of them, between-class mixing"] = chain(AugmentConfig(**everything))
    turns = take_turns({"a step of cnn_small": step(x, batch.y), **contestants}, words.rounds)
    whole = statistics.median(turn.wall for turn in turns["a step of cnn_small"])
    lines = ["| | ms a batch, median | spread | share of a step |", "|---|---|---|---|"]
    for name, runs in turns.items():
        wall = sorted(run.wall / (BATCHES if name in contestants else 1) for run in runs)
        middle = statistics.median(wall)
        spread = f"{1e3 * wall[0]:.2f} to {1e3 * wall[-1]:.2f}"
        lines.append(f"| {name} | {1e3 * middle:.2f} | {spread} | {middle / whole:.1%} |")
    lines += ["", conditions(words.rounds, ["torch", "numpy"])]
    title = f"Augmentation of {words.batch} x ({words.bands}, {words.frames})"
    publish("augment", title, lines, words.write)


if __name__ == "__main__":
    main()
