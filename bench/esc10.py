"""What each part of configs/esc10_cnn_vgg.yaml is worth: the same training with one part left out.

    python bench/esc10.py train [--row=all] [--seed=42] [--folds=0,1,2,3,4]
    python bench/esc10.py table

both with [--shards=data/esc10_44k] [--runs=runs].

`train` goes on where it was stopped and skips what is finished. `table` scores every row by the
folds and seeds that are finished, and beside the config itself on the same recordings and seeds.
Rows without words of their own are the trainings of `all`, scored once more: by fewer windows, by
the last weights instead of their average.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import numpy as np

from toolkit.intervals import percentiles
from toolkit.metrics import resampled
from toolkit.predictions import Predictions, of_samples, read_predictions, write_predictions
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
    """Fold after fold, on one thread; the CPU time of each is kept in its folder."""
    run = folder_of(runs, row, seed)
    for fold in folds.split(","):
        folder = run / f"fold-{fold}"
        if (folder / "scores.json").exists():
            continue
        begun = cpu_seconds()
        done = subprocess.run(
            [
                sys.executable, str(ROOT / "train.py"), str(CONFIG), f"--data.shards={shards}",
                f"--run.dir={runs}", f"--run.name={run.name}", f"--data.fold={fold}",
                f"--train.seed={seed}", "--train.threads=1", *ROWS[row],
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if folder.is_dir():
            with (folder / "cpu_seconds.txt").open("a") as file:
                file.write(f"{cpu_seconds() - begun:.0f}\n")
        done.check_returncode()


def cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(shards: str, runs: Path) -> None:
    """A row a change; intervals are over source clips, those of differences paired."""
    print("| | pooled accuracy | 95 % interval | less the config's | 95 % interval | n | seconds |")
    print("|---|---|---|---|---|---|---|")
    whole = answers(shards, runs, "all")
    for row in (*ROWS, *AGAIN):
        found = answers(shards, runs, row)
        both = sorted(found.keys() & whole.keys())
        if not both:
            continue
        right, config = (np.array([some[key][1] for key in both]) for some in (found, whole))
        units = np.array([found[key][0] for key in both])
        cells = estimate(right, units, "")
        cells += ["", ""] if row == "all" else estimate(right - config, units, "+")
        folders = finished(runs, row)
        seeds = len({folder.parent for folder in folders})
        times = [f.read_text().split() for x in folders for f in x.glob("cpu_seconds.txt")]
        cost = f"{sum(float(s) for some in times for s in some) / len(times):.0f}" if times else ""
        print("|", " | ".join([row, *cells, f"{len(folders) / seeds:g} x {seeds}", cost]), "|")


def estimate(values: np.ndarray, units: np.ndarray, sign: str) -> list[str]:
    """The mean, and its interval over resampled units."""
    unit = np.unique(units, return_inverse=True)[1]
    sums, sizes = np.bincount(unit, values), np.bincount(unit)
    means = resampled(lambda times: {"mean": times @ sums / (times @ sizes)}, unit, 2000)["mean"]
    low, high = percentiles(means, unit) or [np.nan] * 2
    return [f"{values.mean():{sign}.4f}", f"{low:{sign}.3f} to {high:{sign}.3f}"]


def finished(runs: Path, row: str) -> list[Path]:
    """The folds of all seeds that are."""
    run = folder_of(runs, row if row in ROWS else "all", "[0-9]*").name
    return sorted(file.parent for file in runs.glob(f"{run}/fold-*/scores.json"))


def answers(shards: str, runs: Path, row: str) -> dict[tuple[str, str], tuple[str, float]]:
    """Of each seed and recording: its source clip, and 1 where the row has it right."""
    found = {}
    for folder in finished(runs, row):
        said = predictions(folder, shards, *AGAIN.get(row, ())).at("recording")
        right = (said.labels == said.predicted).astype(float)
        seed = folder.parent.name.rpartition("_s")[2]
        for name, clip, one in zip(said.recording, said.group, right, strict=True):
            found[seed, str(name)] = str(clip or name), float(one)
    return found


def predictions(folder: Path, shards: str, crops: int = 0, weights: str = "") -> Predictions:
    """Of one fold by predictions.csv, or scored again, and kept in a file of their own."""
    file = folder / (f"predictions_{crops}_{weights}.csv" if weights else "predictions.csv")
    if not file.exists():
        write_predictions(file, scored(folder, shards, crops, weights))
    return read_predictions(file)


def scored(folder: Path, shards: str, crops: int, weights: str) -> Predictions:
    """One fold by `crops` windows, with the averaged weights or the last ones."""
    import torch
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
    found = log_probabilities(model, transform, shard_set, numbers, world, 32)
    return of_samples(shard_set, numbers, found, shard_set.folds[int(folder.name[5:])])


if __name__ == "__main__":
    main()
