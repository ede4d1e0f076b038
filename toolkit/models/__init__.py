"""The registry of models: a name in the config, (B, 1, M, T) in, (B, K) logits out."""

from collections.abc import Callable
from typing import Any

from torch import nn

from shards.command import nearest
from shards.errors import UserError
from toolkit.models.cnn import TinyCNN, cnn_small
from toolkit.schema import ModelConfig

REGISTRY: dict[str, Callable[..., Any]] = {
    "cnn_tiny": TinyCNN,
    "cnn_small": cnn_small,
}


def build(config: ModelConfig, n_classes: int, shape: tuple[int, int]) -> nn.Module:
    """The model that `config` names, for spectrograms of `shape` (M, T).

    Raises:
        UserError: no such model, or spectrograms too small for it.
    """
    if config.name not in REGISTRY:
        raise UserError(
            f"model.name={config.name}: unknown; {nearest(config.name, list(REGISTRY))}"
        )
    model = REGISTRY[config.name](n_classes, norm_batch=config.norm_batch, dropout=config.dropout)
    bands, frames = model.smallest
    if shape[0] < bands or shape[1] < frames:
        raise UserError(
            f"model.name={config.name} takes at least {bands} bands x {frames} frames, the "
            f"shard set has {shape[0]} x {shape[1]}; build it with longer segments or more bands"
        )
    return model
