"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models) for one channel."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from shards.command import nearest
from shards.errors import UserError
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.models.blocks import classifier, initialise

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)


class Backbone(nn.Module):
    """timm's features, pooled, under a linear head of our own.

    Batch norm is replaced by the one that no launch changes, with its weights and statistics.
    Initialised as timm does it, or with its weights (`pretrained`); the head by a normal
    distribution of standard deviation 0.01.

    Shape: (B, 1, M, T) -> (B, K); some backbones take only the (M, T) that they were built for.
    """

    smallest = (1, 1)

    def __init__(
        self,
        name: str,
        n_classes: int,
        shape: tuple[int, int],
        *,
        norm_batch: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pretrained: bool | str = False,
    ):
        super().__init__()
        options = {"drop_path_rate": drop_path} if drop_path else {}
        self.backbone = create(name, shape, pretrained, options)
        regroup(self.backbone, norm_batch, name)
        self.head = classifier(width(self.backbone, name, shape), n_classes, dropout)
        initialise(self.head, "head")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def create(
    name: str, shape: tuple[int, int], pretrained: bool | str, options: dict[str, Any]
) -> nn.Module:
    """timm's model of that name without a classifier, with weights where they are asked for.

    Raises:
        UserError: no timm, no such model, or no such weights, neither here nor within reach.
    """
    try:
        import timm
    except ImportError:
        raise UserError(
            f"model.name=timm:{name} needs timm: pip install .[timm], or take another model"
        ) from None
    if name.partition(".")[0] not in timm.list_models():
        raise UserError(f"model.name=timm:{name}: unknown; {nearest(name, timm.list_models())}")
    if torch.get_default_device().type == "meta":
        pretrained = False  # only sizes are wanted
    if isinstance(pretrained, str):
        if not (pretrained.endswith(".safetensors") and Path(pretrained).is_file()):
            raise UserError(f"model.pretrained={pretrained}: expected a .safetensors file")
        options = {**options, "pretrained_cfg_overlay": {"file": pretrained}}
    options |= {"pretrained": bool(pretrained), "in_chans": 1, "num_classes": 0}
    sized, padded = {"img_size": shape}, {"dynamic_img_pad": True}
    try:  # padded alone, a ViT would have no positions for the patches that padding completes
        for more in (sized | padded | {"dynamic_img_size": True}, sized | padded, sized):
            with suppress(TypeError):  # convolutional nets take any size and have no such option
                return timm.create_model(name, **more, **options)
        return timm.create_model(name, **options)
    except TypeError:
        if "drop_path_rate" not in options:
            raise
        raise UserError(f"model.drop_path: timm:{name} has no such thing; leave it out") from None
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"model.pretrained={pretrained}: no weights for timm:{name} ({one_line(error)}); load "
            "them once where there is a network, name a .safetensors file, or use "
            "model.pretrained=false"
        ) from None


def regroup(module: nn.Module, norm_batch: int, name: str) -> None:
    """Replace every batch norm inside `module`, by name; timm's own kind keeps its activation."""
    for child_name, child in module.named_children():
        if not isinstance(child, BATCH_NORMS):
            regroup(child, norm_batch, name)
            continue
        if not (isinstance(child, nn.BatchNorm2d) and child.affine):
            raise UserError(
                f"model.name=timm:{name} has a {type(child).__name__}, whose statistics would "
                "follow the microbatch; take a backbone with 2-d batch norm or layer norm"
            )
        norm = GroupedBatchNorm2d(child.num_features, norm_batch, child.momentum or 0.1, child.eps)
        norm.load_state_dict(child.state_dict(), strict=False)  # less num_batches_tracked
        after = [part for key in ("drop", "act") if (part := getattr(child, key, None))]
        setattr(module, child_name, nn.Sequential(norm, *after) if after else norm)


@torch.no_grad()
def width(backbone: nn.Module, name: str, shape: tuple[int, int]) -> int:
    """How many features come out for spectrograms of `shape`."""
    backbone.eval()
    try:
        features = backbone(torch.zeros(1, 1, *shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.name=timm:{name} takes no spectrograms of {shape[0]} x {shape[1]}: "
            f"{one_line(error)}"
        ) from None
    backbone.train()
    return features.shape[1]


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
