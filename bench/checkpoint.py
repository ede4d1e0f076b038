"""How long a checkpoint holds up a training: ours, written beside it, and accelerate's save_state.

Linear layers of 1792 x 1792, 3.2 million parameters each, AdamW, float32, batch 32: --layers=8 is
26 million. Ours is fsynced and has SHA-256 of its files; save_state is neither. The stall is the
time of the call and of what the next step waits; the excess is how much longer than others the
steps take that run beside the writing.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from side_by_side import MARKS, arguments, conditions, one_thread, publish
from torch import nn

from shards.index import ShardSet
from shards.order import plan_batch
from toolkit.saver import Saver
from toolkit.schema import OptimConfig, TrainConfig
from toolkit.strategy import Strategy
from toolkit.world import World

WIDTH, PLAIN_STEPS, MOST = 1792, 5, 0.05


class Waiting(Saver):
    """Checkpoints that note how long the next step waits for them."""

    waited = 0.0

    def _hold(self) -> None:
        began = perf_counter()
        super()._hold()
        self.waited += perf_counter() - began


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    began = perf_counter()
    action()
    return perf_counter() - began


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=9, layers=8)
    one_thread()
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(words.layers)))
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    world, plan = World(0, 1, torch.device("cpu")), plan_batch(32, None, 1)
    strategy = Strategy(Accelerator(cpu=True), world, model, optimizer, plan, OptimConfig())
    plainly = Accelerator(cpu=True)  # as its users have it: model and optimiser are prepared
    plainly.prepare(model, optimizer)
    x = torch.randn(32, WIDTH)

    def step() -> None:
        strategy.model(x).square().mean().backward()
        strategy.optimizer.step()
        strategy.optimizer.zero_grad()

    theirs, ours, excess, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        nothing = ShardSet(Path(folder), {"shards": [], "classes": []})
        saver = Waiting(Path(folder), strategy, nothing, TrainConfig(), world, plan, target=10**9)
        for n in range(-1, words.rounds):  # the first round is not counted
            undisturbed = [timed(step) for _ in range(PLAIN_STEPS)]
            state = timed(lambda: plainly.save_state(f"{folder}/state"))
            written = sum(file.stat().st_size for file in Path(folder, "state").iterdir())
            assert written >= 12 * parameters, "save_state has to save all of it"
            for _ in range(2):
                step()
            saver.waited, number = 0.0, n + 2
            stall = timed(lambda number=number: saver.save({"step": number, "history": []}))
            beside = []
            while saver.writing:
                beside.append(timed(step))
            stall += saver.waited
            usual = statistics.median(undisturbed)
            if n >= 0:
                theirs.append(state)
                ours.append(stall)
                excess.append(sum(beside) - saver.waited - len(beside) * usual)
                plain.append(usual)
        saver.close()
    shares = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    middle = statistics.median(shares)
    lines = [
        conditions(words.rounds, ["torch", "accelerate", "safetensors"]),
        f"{parameters / 1e6:.1f} M parameters, {12 * parameters / 1e6:.0f} MB with both moments.",
        "",
        "| | ms, median | spread |",
        "|---|---|---|",
        *(
            f"| {name} | {1e3 * statistics.median(times):.1f} | "
            f"{1e3 * min(times):.1f} to {1e3 * max(times):.1f} |"
            for name, times in (
                ("accelerator.save_state, the step waits for all of it", theirs),
                ("checkpoint beside the training, the step waits", ours),
                ("the steps beside the writing take longer, in all", excess),
                ("a step, undisturbed", plain),
            )
        ),
        *MARKS,
        f"| stall, as a share of save_state's | {100 * middle:.2f} % | {100 * shares[0]:.2f} % to "
        f"{100 * shares[-1]:.2f} % | below {100 * MOST:.0f} % | "
        f"{'yes' if middle < MOST else '**no**'} |",
    ]
    publish("checkpoint", "A checkpoint's stall", lines, words.write)


if __name__ == "__main__":
    main()
