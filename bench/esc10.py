"""What each part of configs/esc10_cnn_vgg.yaml is worth: the same training with one part left out.

    python bench/esc10.py train [--row=all] [--seed=42] [--folds=0,1,2,3,4]
    python bench/esc10.py table

both with [--shards=data/esc10_44k] [--runs=runs].

`train` goes on where it was stopped and skips what is finished. `table` scores every row whose five
folds are finished, for all seeds there are. Rows without words of their own are the trainings of
`all`, scored once more: by fewer windows, by the last weights instead of their average.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from toolkit.metrics import bootstrap
from toolkit.predictions import Predictions, join, of_samples, read_predictions
from toolkit.results import read_json

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "esc10_cnn_vgg.yaml"
ROWS: dict[str, list[str]] = {
    "all": [],
    "no mixing": ["--augment.mix=none"],
    "all samples mixed": ["--augment.mix_share=1"],
    "no gain, equaliser, time scale": [
        "--augment.gain_db=0", "--augment.eq_db=0", "--augment.time_scale=1",
    ],
    "half the epochs": ["--train.epochs=60"],
    "no SpecAugment": ["--augment.time_masks=0", "--augment.freq_masks=0"],
    "by its peak, not per band": ["--data.normalize=peak", "--augment.mask_db=-200"],
    "whole segments, rolled": ["--augment.crop_frames=0", "--augment.time_roll=125"],
}  # fmt: skip
AGAIN = {"one window": (1, "best"), "whole segments at once": (0, "best"), "no EMA": (10, "last")}


def main() -> None:
    """Train a row, or write the table."""
    verb, *flags = sys.argv[1:]
    words = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    shards, runs = words.pop("shards", "data/esc10_44k"), Path(words.pop("runs", "runs"))
    if verb == "train":
        train(shards, runs, **words)
    else:
        table(shards, runs)


def folder_of(runs: Path, row: str, seed: int | str) -> Path:
    part = "" if row == "all" else "_" + re.sub("[^a-z]+", "_", row.lower())
    return runs / f"{CONFIG.stem}{part}_s{seed}"


def train(
    shards: str, runs: Path, row: str = "all", seed: str = "42", folds: str = "0,1,2,3,4"
) -> None:
    """Fold after fold, on one thread."""
    for fold in folds.split(","):
        subprocess.run(
            [
                sys.executable, str(ROOT / "train.py"), str(CONFIG), f"--data.shards={shards}",
                f"--run.dir={runs}", f"--run.name={folder_of(runs, row, seed).name}",
                f"--data.fold={fold}", f"--train.seed={seed}", "--train.threads=1", *ROWS[row],
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
        )  # fmt: skip


def table(shards: str, runs: Path) -> None:
    """A row a change: mean over seeds, and a bootstrap interval of it over source clips."""
    print("| | pooled accuracy | 95 % interval | of each seed | seconds a fold |")
    print("|---|---|---|---|---|")
    for row in (*ROWS, *AGAIN):
        source = row if row in ROWS else "all"
        pattern = folder_of(runs, source, "[0-9]*").name
        found = [run for run in sorted(runs.glob(pattern)) if len(finished(run)) == 5]
        if not found:
            continue
        again = AGAIN.get(row)
        said = [predictions(run, again and (shards, *again)) for run in found]
        each = [float((p.labels == p.predicted).mean()) for p in said]
        labels, predicted, groups = (
            np.concatenate([getattr(p, name) for p in said])
            for name in ("labels", "predicted", "group")
        )
        low, high = bootstrap(labels, predicted, groups, "accuracy")
        seconds = np.mean([s for run in found for s in finished(run).values()])
        seeds = ", ".join(f"{accuracy:.4f}" for accuracy in each)
        cells = row, f"{np.mean(each):.4f}", f"{low:.3f} to {high:.3f}", seeds, f"{seconds:.0f}"
        print("|", " | ".join(cells), "|")


def finished(run: Path) -> dict[str, float]:
    """The folds that are, and their seconds."""
    files = run.glob("fold-*/scores.json")
    return {file.parent.name: read_json(file)["seconds"] for file in files}


def predictions(run: Path, again: tuple[str, int, str] | None) -> Predictions:
    """Of the recordings, by predictions.csv or scored again."""
    folders = sorted(run.glob("fold-*"))
    parts = [
        scored(f, *again) if again else read_predictions(f / "predictions.csv") for f in folders
    ]
    return join(parts).at("recording")


def scored(folder: Path, shards: str, crops: int, weights: str) -> Predictions:
    """One fold by `crops` windows, with the averaged weights or the last ones."""
    import torch
    from accelerate import Accelerator
    from safetensors.torch import load_file

    from shards.index import open_set
    from toolkit.augment import Transform
    from toolkit.evaluate import log_probabilities
    from toolkit.models import build
    from toolkit.precision import autocast
    from toolkit.schema import ModelConfig
    from toolkit.world import World

    info, cpu = read_json(folder / "model.json"), torch.device("cpu")
    norm, frames = info["normalisation"], info["windows"]["frames"]
    mean, std = (np.array(norm[key], np.float32) for key in ("mean", "std"))
    transform = Transform(mean, std, cpu, norm["by"], norm["top_db"], crops, frames)
    shard_set = open_set(shards)
    model = build(ModelConfig(**info["model"]), len(info["classes"]), tuple(info["shape"]))
    last = max(folder.glob("checkpoints/step-*/model.safetensors"))
    model.load_state_dict(load_file(last if weights == "last" else folder / "best.safetensors"))
    world = World(0, 1, cpu, precision="bf16")
    autocast(model, world)
    numbers = np.flatnonzero(shard_set.index["fold"] == int(folder.name[5:]))
    found = log_probabilities(model, transform, shard_set, numbers, world, Accelerator(), 32)
    return of_samples(shard_set, numbers, found, shard_set.folds[int(folder.name[5:])])


if __name__ == "__main__":
    main()
