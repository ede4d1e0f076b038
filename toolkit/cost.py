"""What models cost: counted on tensors without data. `B` batch, `M` mel bands, `T` frames."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from shards.errors import UserError
from toolkit import tables
from toolkit.config import load
from toolkit.data import open_data
from toolkit.models import REGISTRY, build
from toolkit.schema import Config, ModelConfig

Shape = tuple[int, int]
DEFAULT: Shape = (128, 250)  #: 8 s at 16 kHz, hop 512


class Cost(NamedTuple):
    """Of one model on one kind of input."""

    parameters: int
    flops: int  #: of a sample's forward; a multiplication and an addition are two
    activations: int  #: bytes that a sample's backward needs kept, in float32


def measure(config: ModelConfig, n_classes: int, shape: Shape) -> Cost:
    """Count; nothing is computed, and no memory taken.

    Raises:
        UserError: no such model, or it does not take such an input.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build(config, n_classes, shape).eval()
        model(torch.zeros(1, 1, *shape))
    kept = activations(model.train(), (config.norm_batch, 1, *shape)) // config.norm_batch
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops(), kept)


def activations(model: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of distinct tensors that the forward of an input of `shape` saves for the backward,
    less the weights. `model` ends on pretended CPU tensors: a meta one has no attention without its
    matrix, a pretended one cannot be initialised.
    """
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), saved_tensors_hooks(pack, lambda kept: kept):
        model.to_empty(device="cpu")(torch.zeros(*shape))
    weights = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


def table(words: Sequence[str]) -> str:
    """Every model of the registry, and that of the config, as a Markdown table.

    `words` are those of train.py, or none: two classes of `DEFAULT`.
    """
    configs = {name: ModelConfig(name=name) for name in REGISTRY}
    shape, n_classes, note = DEFAULT, 2, ""
    if words:
        config = load(words)
        configs = {n: replace(c, norm_batch=config.model.norm_batch) for n, c in configs.items()}
        configs[config.model.name] = config.model
        shape, n_classes, note = input_of(config)
    about = (
        f"Input {shape[0]} bands x {shape[1]} frames, {n_classes} classes{note}; a sample's FLOPs "
        "are those of a forward, its activations what training keeps of it in float32."
    )
    rows, refused = [], []
    for name, one in configs.items():
        mark = " (the config's)" if words and name == config.model.name else ""
        try:
            n, flops, kept = measure(one, n_classes, shape)
        except UserError as error:
            refused.append(f"{name}: {error}")
        else:
            rows.append([name + mark, f"{n:,}", f"{flops / 1e9:.3f}", f"{kept / 1e6:.1f}"])
    header = ["model", "parameters", "GFLOPs", "activations, MB"]
    return "\n\n".join([about, tables.rendered(header, rows, None), *refused])


def input_of(config: Config) -> tuple[Shape, int, str]:
    """Shape, number of classes, and a remark: of the shard set, or where it is not there yet, of
    what the config says of it."""
    data = config.data
    try:
        shard_set = open_data(data)
        return config.input_shape(shard_set.shape), len(shard_set.class_names), ""
    except UserError:
        seconds, rate, hop = data.segment_seconds, data.sample_rate, data.hop_length
        if not (data.n_mels and seconds and rate and hop):
            raise
    frames = math.ceil(round(seconds * rate) / hop)
    note = f" (assumed: {data.shards} is not there)"
    return config.input_shape((data.n_mels, frames)), len(data.classes or "ab"), note
