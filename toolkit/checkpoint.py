"""Checkpoints: whole or not there, checked when read, tensors as safetensors and the rest JSON.

    checkpoints/step-00001200/model.safetensors [ema.safetensors] optimizer.safetensors state.json
    checkpoints/latest

Both hold whole tensors by name, whoever wrote them (toolkit.strategy).
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

from shards.index import file_entry, sync_folder, write_atomic
from toolkit.strategy import Strategy, Tensors

log = logging.getLogger(__name__)


def save(folder: Path, strategy: Strategy, state: dict[str, Any], keep: int) -> None:
    """Gather a checkpoint of `state["step"]` on every rank and write it on one."""
    models, moments = {"model": strategy.weights()}, strategy.moments()
    if strategy.average:
        models["ema"] = strategy.average.module.state_dict()
    if strategy.accelerator.is_main_process:
        write(folder, models, moments, state, keep)


def write(
    folder: Path,
    models: Mapping[str, Tensors],
    moments: Tensors,
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint aside, fsync, rename; then delete all but `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']:08d}"
    aside = folder / f".{name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for part, weights in models.items():
        write_atomic(aside / f"{part}.safetensors", packed(weights))
    write_atomic(aside / "optimizer.safetensors", packed(moments))
    files = {file.name: file_entry(file) for file in sorted(aside.iterdir())}
    write_atomic(aside / "state.json", json.dumps({**state, "files": files}).encode())
    if (folder / name).exists():  # the same step again, after a resume from before it
        shutil.rmtree(folder / name)
    os.replace(aside, folder / name)
    sync_folder(folder)
    write_atomic(folder / "latest", name.encode())
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def restore(folder: Path, strategy: Strategy) -> dict[str, Any] | None:
    """Load the newest sound checkpoint into model and optimiser; its state, or None."""
    for path in reversed(checkpoints(folder)):
        fault = damage(path)
        if fault:
            log.warning("%s is damaged (%s); trying the one before it", path, fault)
            continue
        strategy.load_weights(safetensors.torch.load_file(path / "model.safetensors"))
        strategy.load_moments(safetensors.torch.load_file(path / "optimizer.safetensors"))
        if strategy.average:
            strategy.average.module.load_state_dict(
                safetensors.torch.load_file(path / "ema.safetensors")
            )
        return json.loads((path / "state.json").read_text())
    return None


def packed(tensors: Mapping[str, Any]) -> bytes:
    """A safetensors file, which holds no other layout than the plain one."""
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})


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


def save_weights(strategy: Strategy, file: Path) -> None:
    """Gather the weights that are judged, on every rank; write them on one, whole or not at all."""
    weights = strategy.judged_weights()
    if strategy.accelerator.is_main_process:
        write_atomic(file, packed(weights))
