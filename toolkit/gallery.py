"""Before and after: what the augmentation of a config does to the first batch of its training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shards.errors import UserError
from shards.index import ShardSet
from shards.labels import display_names, shorten
from shards.loader import Loader
from shards.order import plan_batch
from shards.picture import Panel, draw, save
from toolkit.augment import SWITCHES, Augment, Sound, Transform
from toolkit.data import open_parts
from toolkit.schema import AugmentConfig, Config

LIMIT = 64  # samples that are read and augmented for it, or one group where that is more


def draw_augmentation(config: Config, output: Path, samples: int) -> Path:
    """Draw `samples` of the first batch into the PNG `output`: a row a stage, a column a sample.

    They are as the first step of training sees them, of different classes as far as there are any.

    Raises:
        UserError: `samples` is below 1, or the config turns no augmentation on.
    """
    if samples < 1:
        raise UserError(f"--samples={samples}: at least 1")
    stages = alone(config.augment)
    if not stages:
        raise UserError(
            "the config turns no augmentation on, so there is nothing to draw; "
            f"turn on one of augment.{', '.join(SWITCHES)}"
        )
    if len(stages) > 1:
        stages["all"] = config.augment
    shard_set, columns, sounds = first_batch(config, samples, stages)
    panels = [
        Panel(row, column, title(shard_set, stage, column, sound.y[b]), sound.seen[b].numpy())
        for row, (stage, sound) in enumerate(sounds.items())
        for column, b in enumerate(columns)
    ]
    save(draw(shard_set, panels, len(columns)), output)
    return output


def alone(config: AugmentConfig) -> dict[str, AugmentConfig]:
    """Each augmentation that is on, by its key and value, as a config with all others off."""
    off = {name: getattr(AugmentConfig(), name) for name in SWITCHES}
    return {
        f"{name}={getattr(config, name)}": replace(
            config, **{other: value for other, value in off.items() if other != name}
        )
        for name in SWITCHES
        if getattr(config, name) != off[name]
    }


def first_batch(
    config: Config, samples: int, stages: dict[str, AugmentConfig]
) -> tuple[ShardSet, list[int], dict[str, Sound]]:
    """The first samples of training before and after each stage, and which of them to show."""
    train, group, cpu = config.train, config.model.norm_batch, torch.device("cpu")
    shard_set, parts, order, mean, std = open_parts(config)
    plan = plan_batch(train.batch_size, max(group, LIMIT), 1, group)
    batch = next(Loader(shard_set, parts["train"], order, plan, 0, cpu).steps(0, 1))[0]
    transform = Transform.of(config, mean, std, cpu)
    sounds = {
        stage: Augment(augment, shard_set, transform, train.seed, group).decibels(batch, 1)
        for stage, augment in {"before": AugmentConfig(), **stages}.items()
    }
    first = np.sort(np.unique(batch.y.numpy(), return_index=True)[1])
    columns = np.concatenate([first, np.delete(np.arange(len(batch.y)), first)])
    return shard_set, columns[:samples].tolist(), sounds


def title(shard_set: ShardSet, stage: str, column: int, y: torch.Tensor) -> str:
    """One sample's class, or its classes with their shares; the first of a row names the stage."""
    names = display_names(shard_set.class_names)
    if y.ndim == 0:
        text = shorten(names[int(y)], 24)
    else:
        parts = [(float(y[k]), shorten(names[k], 10)) for k in y.argsort(descending=True).tolist()]
        text = " + ".join(f"{share:.2f} {name}" for share, name in parts if share >= 0.005)
    return text if column else f"{stage} · {text}"
