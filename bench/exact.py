"""What train.exact costs: a step of cnn_small, batch 32 of (128, 157), on one thread of a CPU."""

import os
import tempfile
from functools import partial
from pathlib import Path

from contestants import noise, wavefold
from pace import Paced
from side_by_side import MARKS, arguments, conditions, mark, publish, ratio
from trainer import raced, table

MICROBATCHES = (32, 16)  # of whole groups of model.norm_batch


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=7, steps=10)
    core = sorted(os.sched_getaffinity(0))[:1]
    with tempfile.TemporaryDirectory() as folder:
        shards = noise(Path(folder), 640, 5.0, n_mels=128, n_fft=2048, hop_length=512)
        contestants = {
            f"{name}, microbatch {size}": Paced(
                partial(wavefold, shards, "cnn_small", microbatch=size, threads=1, exact=exact),
                words.steps,
                core,
            )
            for size in MICROBATCHES
            for name, exact in (("plain", False), ("exact", True))
        }
        turns = raced(contestants, words.rounds)
    lines = [conditions(words.rounds, ["torch"]), *table(turns, words.steps), *MARKS]
    for size in MICROBATCHES:
        plain, exact = (turns[f"{name}, microbatch {size}"] for name in ("plain", "exact"))
        for clock in ("wall", "cpu"):
            cost = [100 * (r - 1) for r in ratio(exact, plain, clock)]
            about = f"exact costs with microbatch {size}, {clock}, %: at most"
            lines.append(mark(about, cost, 10, "{:.1f}", most=True))
    publish("exact", "The same bits on any number of processes", lines, words.write)


if __name__ == "__main__":
    main()
