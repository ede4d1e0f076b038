"""What folds side by side gain: two of cnn_small on half the cores each, and one after another.

With --per_gpu=5 five folds share a GPU, and run on it one after another.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path

import yaml
from contestants import noise
from side_by_side import MARKS, arguments, conditions, mark, publish, ratio, take_turns
from trainer import table

ROOT = Path(__file__).parent.parent
RUNS = count()
SAMPLES, BATCH = 256, 32


def train(config: Path, folds: int, *words: str) -> float:
    """All folds from nothing to a report; CPU seconds of their processes."""
    before = os.times()
    command = [sys.executable, "-m", "launch.local", str(config), f"--folds={folds}", *words]
    command += [f"--run.name={next(RUNS)}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=3, epochs=2, per_gpu=0)
    folds = words.per_gpu or 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = noise(folder, SAMPLES, 5.0, folds=folds, n_mels=128, n_fft=2048, hop_length=512)
        config = folder / "folds.yaml"
        values = {
            "run": {"name": "folds", "dir": str(folder / "runs")},
            "data": {"shards": shards, "protocol": "kfold"},
            "model": {"name": "cnn_small"},
            "train": {"epochs": words.epochs, "batch_size": BATCH, "save_minutes": 0},
        }
        config.write_text(yaml.safe_dump(values))
        place = ["--gpus=0"] if words.per_gpu else []
        many = [f"--per_gpu={words.per_gpu}"] if words.per_gpu else [f"--jobs={folds}"]
        contestants = {
            "one after another": partial(train, config, folds, *place, "--jobs=1"),
            "side by side": partial(train, config, folds, *place, *many),
        }
        turns = take_turns(contestants, words.rounds)
    of_a_fold = SAMPLES * (folds - 1) // folds
    steps = words.epochs * -(-of_a_fold // BATCH) * folds
    one, beside = turns.values()
    lines = [
        conditions(words.rounds, ["torch"]).replace(", one thread a process", ""),
        f"{folds} folds, {words.epochs} epochs of {of_a_fold} samples each, batch {BATCH}, from "
        "the start of the processes to the report; ms of a step of one fold.",
        "",
        *table(turns, steps),
        *MARKS,
        mark("one after another / side by side, wall", ratio(one, beside), 1),
    ]
    publish("folds", "Folds side by side", lines, words.write)


if __name__ == "__main__":
    main()
