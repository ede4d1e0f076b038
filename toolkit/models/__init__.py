"""The registry of models: a name in the config, (B, 1, M, T) in, (B, K) logits out."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from shards.command import nearest
from shards.errors import UserError
from toolkit.config import chosen
from toolkit.models import cnn, vit
from toolkit.models.crnn import CRNN
from toolkit.models.timm_backbone import Backbone
from toolkit.schema import ModelConfig

REGISTRY: dict[str, Callable[..., Any]] = {
    "cnn_tiny": cnn.TinyCNN,
    "cnn_small": cnn.cnn_small,
    "cnn_medium": cnn.cnn_medium,
    "cnn_large": cnn.cnn_large,
    "cnn_conv1d": cnn.Conv1dCNN,
    "cnn_spectrogram": cnn.SpectrogramCNN,
    "cnn_vgg": cnn.VGG,
    "crnn": CRNN,
    "vit_small": vit.vit_small,
    "vit_medium": vit.vit_medium,
    "vit_large": vit.vit_large,
}


def build(config: ModelConfig, n_classes: int, shape: tuple[int, int]) -> nn.Module:
    """The model that `config` names, with fresh weights, for spectrograms of `shape` (M, T).

    Raises:
        UserError: no such model, a setting that it does not know or cannot have, or spectrograms
            too small for it.
    """
    make = find(config.name)
    settings = chosen(config, make)
    kind: Any = make.func if isinstance(make, partial) else make
    bands, frames = kind.smallest
    if shape[0] < bands or shape[1] < frames:
        raise UserError(
            f"model.name={config.name} takes at least {bands} bands x {frames} frames, here are "
            f"{shape[0]} x {shape[1]}; build the shard set with longer segments or more bands, or "
            "raise augment.crop_frames"
        )
    if config.outputs and n_classes != 2:
        raise UserError(
            f"model.outputs={config.outputs}: one score is for two classes, the shard set has "
            f"{n_classes}; leave it out"
        )
    return make(config.outputs or n_classes, shape, norm_batch=config.norm_batch, **settings)


def find(name: str) -> Callable[..., Any]:
    """What makes the model of that name."""
    if name.startswith("timm:"):
        return partial(Backbone, name.removeprefix("timm:"))
    if name == "forest":
        raise UserError("model.name=forest: trees have no gradient; only train.py CONFIG grows one")
    if name not in REGISTRY:
        hint = nearest(name, [*REGISTRY, "forest"])
        raise UserError(f"model.name={name}: unknown; {hint} (a model of timm's is timm:{name})")
    return REGISTRY[name]
