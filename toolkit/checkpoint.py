"""Checkpoints: whole or not there, checked when read, tensors as safetensors and the rest JSON.

    checkpoints/step-00001200/model.safetensors [ema.safetensors] optimizer.safetensors state.json
    checkpoints/latest

Every random draw of the training is a function of (seed, step, place): no generator is saved.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from shards.index import file_entry, sync_folder, write_atomic

log = logging.getLogger(__name__)


def save(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint of `state["step"]` aside, fsync, rename; then delete all but `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']:08d}"
    aside = folder / f".{name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for part, model in models.items():
        save_weights(model, aside / f"{part}.safetensors")
    moments = flatten(optimizer.state_dict()["state"])
    write_atomic(aside / "optimizer.safetensors", safetensors.torch.save(moments))
    files = {file.name: file_entry(file) for file in sorted(aside.iterdir())}
    write_atomic(aside / "state.json", json.dumps({**state, "files": files}).encode())
    if (folder / name).exists():  # the same step again, after a resume from before it
        shutil.rmtree(folder / name)
    os.replace(aside, folder / name)
    sync_folder(folder)
    write_atomic(folder / "latest", name.encode())
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def restore(
    folder: Path, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Load the newest sound checkpoint into models and optimiser; its state, or None."""
    for path in reversed(checkpoints(folder)):
        fault = damage(path)
        if fault:
            log.warning("%s is damaged (%s); trying the one before it", path, fault)
            continue
        for part, model in models.items():
            model.load_state_dict(safetensors.torch.load_file(path / f"{part}.safetensors"))
        tensors = safetensors.torch.load_file(path / "optimizer.safetensors")
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": unflatten(tensors), "param_groups": groups})
        return json.loads((path / "state.json").read_text())
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / "state.json").read_text())["files"]
        for name, entry in files.items():
            if file_entry(path / name) != entry:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def flatten(state: dict[int, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `12.exp_avg`."""
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def unflatten(tensors: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """The inverse of `flatten`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = tensor
    return state


def save_weights(model: nn.Module, file: Path) -> None:
    """Write the weights under their name whole or not at all."""
    write_atomic(file, safetensors.torch.save(model.state_dict()))
