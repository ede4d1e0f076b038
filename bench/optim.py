"""What the average of weights (optim.ema) adds to a training step of cnn_small, on one thread.

Batch 32 of (1, 128, 157): ten classes, 5 s at 16 kHz. Forward, backward, clipping, AdamW; no data.
"""

import statistics

import torch
import torch.nn.functional as F
from side_by_side import (
    arguments,
    conditions,
    one_thread,
    publish,
    ratio,
    take_turns,
    times,
)

from toolkit.models import build
from toolkit.models.batchnorm import fold_in, grouped_norms, last_statistics
from toolkit.optim import Average, make_optimizer
from toolkit.schema import ModelConfig, OptimConfig

STEPS, UPDATES = 4, 100


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=9)
    one_thread()
    torch.manual_seed(0)
    model = build(ModelConfig(name="cnn_small"), 10, (128, 157))
    parameters = sum(p.numel() for p in model.parameters())
    average = Average(model.state_dict(keep_vars=True), 0.999)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-4))
    norms = grouped_norms(model)
    x, y = torch.randn(32, 1, 128, 157), torch.arange(32) % 10

    def steps() -> None:
        for _ in range(STEPS):
            F.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            fold_in(norms, last_statistics(norms))

    def updates() -> None:
        for step in range(UPDATES):
            average.update(step + 1)

    turns = take_turns({"training step": steps, "average": updates}, words.rounds)
    shares = [
        100 * STEPS / UPDATES / r for r in ratio(turns["training step"], turns["average"], "cpu")
    ]
    middle = statistics.median(shares)
    lines = [
        conditions(words.rounds, ["torch"]),
        f"cnn_small, {parameters / 1e6:.1f} M parameters, batch 32 of 128 x 157.",
        "",
        *times(turns, {"training step": STEPS, "average": UPDATES}, "step"),
        "",
        f"The average takes {middle:.2f} % of a step ({min(shares):.2f} to {max(shares):.2f}), by "
        "the processor's clock.",
    ]
    publish("optim", "The average of weights beside a training step", lines, words.write)


if __name__ == "__main__":
    main()
