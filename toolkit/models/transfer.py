"""Weights from elsewhere to begin with, and parts that are not trained."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import MethodType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from shards.command import nearest
from shards.errors import UserError
from toolkit.models.vit import resize
from toolkit.schema import ModelConfig

log = logging.getLogger(__name__)


def prepare(model: nn.Module, config: ModelConfig, classes: Sequence[str]) -> None:
    """Give `model` the weights of `model.init_from`, and hold still what `model.freeze` names.

    Raises:
        UserError: no such weights, none that fit, or no such part.
    """
    if config.init_from:
        take_over(model, config.init_from, classes)
    if config.freeze:
        freeze(model, config.freeze)


def take_over(model: nn.Module, source: str, classes: Sequence[str]) -> None:
    """Load what fits by name and shape, and tell what was and was not loaded.

    The head begins anew where the classes, or only their order, are others; positions of a ViT are
    interpolated to its number of patches.
    """
    file = find_weights(Path(source))
    there, own = read_weights(file), model.state_dict()
    other_classes = classes_of(file.parent) not in (None, list(classes))
    found = {}
    for name, tensor in there.items():
        if name == "pos_embed" and name in own and tensor.shape[0] == own[name].shape[0]:
            height, width = own[name].shape[1:]
            tensor = resize(tensor.float(), (height, width))
        if other_classes and name.startswith("head."):
            continue
        if name in own and tensor.shape == own[name].shape:
            found[name] = tensor
    if not any(not name.startswith("head.") for name in found):
        raise UserError(f"model.init_from={source}: none of its tensors fit this model")
    model.load_state_dict(found, strict=False)
    log.info("init_from %s: %d of %d tensors loaded", file, len(found), len(own))
    for words, names in (
        ("begin anew", own.keys() - found.keys()),
        ("not taken from there", there.keys() - found.keys()),
    ):
        if names:
            log.info("%s: %s", words, ", ".join(sorted(names)))


def find_weights(source: Path) -> Path:
    """The file of weights that a run, a fold or a file is."""
    if source.is_file():
        return source
    if (source / "best.safetensors").is_file():
        return source / "best.safetensors"
    folds = sorted(file.parent.name for file in source.glob("fold-*/best.safetensors"))
    hint = f"name one of its folds: {', '.join(folds)}" if folds else "no best.safetensors there"
    raise UserError(f"model.init_from={source}: {hint}")


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file; nothing else is opened, since it could run code."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"model.init_from={file}: no .safetensors file ({error})") from None


def classes_of(folder: Path) -> list[str] | None:
    """The classes that the run in `folder` tells apart; None where it does not say."""
    try:
        return json.loads((folder / "model.json").read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError):
        return None


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Hold parts of `model` still by their names, `stages.0` or `cls_token`: weights, dropout and
    the statistics of batch norm. `backbone` is all but the head: a linear probe."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    own = [name for name in {**modules, **parameters} if name and "." not in name]
    for name in names:
        parts = [n for n in own if n != "head"] if name == "backbone" else [name]
        for part in parts:
            if part in modules and part:
                modules[part].requires_grad_(False)
                hold(modules[part])
            elif part in parameters:
                parameters[part].requires_grad_(False)
            else:
                known = ["backbone", *own]
                raise UserError(f"model.freeze={part}: no such part; {nearest(part, known)}")
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError(f"model.freeze={list(names)}: nothing is left to train")


def hold(module: nn.Module) -> None:
    """Keep `module` as it is in evaluation, whatever train() its model gets; copies too."""
    module.eval()
    module.__dict__["train"] = MethodType(stay, module)


def stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """What train() does where nothing is trained."""
    return module
