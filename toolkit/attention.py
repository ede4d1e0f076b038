"""What a model that pools by attention attends to. `B` batch, `M` mel bands, `T` frames."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from safetensors.torch import load_file

from shards.index import ShardSet
from shards.loader import evaluation_batches
from toolkit.augment import Transform
from toolkit.figures import ORANGE, STYLE, save, short
from toolkit.models import REGISTRY, build
from toolkit.schema import ModelConfig


def draw_fold(
    folder: Path, shard_set: ShardSet, numbers: np.ndarray, caution: str | None, most: int = 4
) -> None:
    """Write attention.png of the fold in `folder`, if its model has attention: of `numbers` a
    sample of each class, `most` of them; `caution` is the mark of all its figures."""
    file = folder / "model.json"
    info = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if not info or not hasattr(REGISTRY.get(info["model"]["name"]), "attention"):
        return
    labels = shard_set.rows(numbers)["label"]
    shown = np.unique(labels, return_index=True)[1][:most]
    spectrograms, attention = attend(folder, info, shard_set, numbers[shown])
    titles = [shard_set.label_names[labels[i]] for i in shown]
    save(draw(spectrograms, attention, titles), folder / "attention.png", caution)


@torch.no_grad()
def attend(
    folder: Path, info: dict[str, Any], shard_set: ShardSet, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The samples (B, M, T), dB, and how much each stretch of them counts (B, stretches)."""
    cpu, by = torch.device("cpu"), info["normalisation"]
    mean, std = (np.array(by[key], np.float32) for key in ("mean", "std"))
    model: Any = build(ModelConfig(**info["model"]), len(info["classes"]), shard_set.shape)
    model.load_state_dict(load_file(folder / "best.safetensors"))
    batch = next(evaluation_batches(shard_set, numbers, len(numbers), 0, 1, cpu))
    x = Transform(mean, std, cpu, by["by"], by["top_db"])(batch.x)
    return batch.x.float().numpy(), model.eval().attention(x).numpy()


@rc_context(STYLE)
def draw(spectrograms: np.ndarray, attention: np.ndarray, titles: list[str]) -> Figure:
    """A column a sample: its spectrogram, and below it the attention, times its mean."""
    count, frames = len(titles), spectrograms.shape[2]
    figure = Figure(figsize=(2.6 * count, 3.2), layout="constrained")
    grid = figure.subplots(2, count, squeeze=False, sharex=True, height_ratios=[3, 1])
    top = attention.max() * attention.shape[1] * 1.05
    for i, (above, below) in enumerate(grid.T):
        loudest = spectrograms[i].max()
        above.imshow(
            spectrograms[i], origin="lower", aspect="auto", vmin=loudest - 80, vmax=loudest,
            extent=(0, frames, 0, spectrograms.shape[1]),
        )  # fmt: skip
        above.grid(False)
        above.set_title(short(titles[i]))
        edges = np.linspace(0, frames, attention.shape[1] + 1)
        below.stairs(attention[i] * attention.shape[1], edges, fill=True, color=ORANGE)
        below.set(ylim=(0, top), xlabel="frame")
    grid[0, 0].set_ylabel("mel band")
    grid[1, 0].set_ylabel("attention\n(mean 1)")
    return figure
