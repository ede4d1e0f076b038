"""Checkpoints on a disk: whole or not there, and sound or refused by name.

    checkpoints/step-00001200/model.safetensors [ema.safetensors] optimizer.safetensors
                              state.json manifest.json (bytes and SHA-256 of all others)
    checkpoints/latest

Tensors are whole, by name, whoever wrote them (toolkit.strategy); the rest is JSON. Every random
draw of a training is a function of (seed, step, place): no generator is saved.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shards.durable import becoming, file_entry, sync_folder, write_atomic
from toolkit.strategy import Tensors

FORMAT = 2
NONE, DAMAGED = -1, -2  # instead of the step to go on from


def write(folder: Path, step: int, groups: Mapping[str, Tensors], text: str) -> None:
    """Write a checkpoint aside, fsync, rename, fsync the folder."""
    path, aside = folder / name_of(step), folder / f".{name_of(step)}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for part, tensors in groups.items():
            save(aside / f"{part}.safetensors", tensors, step)
        (aside / "state.json").write_text(text, encoding="utf-8")
        files = {file.name: file_entry(file) for file in sorted(aside.iterdir())}
        manifest = json.dumps({"format": FORMAT, "files": files}, indent=2)
        (aside / "manifest.json").write_text(manifest, encoding="utf-8")
        for file in (*aside.iterdir(), aside):
            sync_folder(file)
        if path.exists():  # a damaged one, that the training went on before
            discard(path)
        os.replace(aside, path)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    point_to(folder, step)


def point_to(folder: Path, step: int) -> None:
    """Have `latest` name the checkpoint of `step`."""
    write_atomic(folder / "latest", name_of(step).encode())


def save(file: Path, tensors: Tensors, step: int) -> None:
    """Write a safetensors file as readable as other files: its library's own are the owner's."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, {"step": str(step)})
    file.chmod(mode)


def write_tensors(file: Path, tensors: Tensors, step: int) -> None:
    """Write a safetensors file of the weights after `step`, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with becoming(file, beside(file)):
        save(beside(file), tensors, step)


def copy(file: Path, to: Path) -> None:
    """Copy a file whole or not at all."""
    with becoming(to, beside(to)):
        shutil.copyfile(file, beside(to))


def beside(file: Path) -> Path:
    """Where a file is written first: always there, so that of kills no more than one is left."""
    return file.with_name(f".{file.name}.tmp")


def step_in(file: Path) -> int:
    """After which step its weights were; 0 if it is not there or broken."""
    with suppress(OSError, SafetensorError), safe_open(file, "pt") as tensors:
        return int((tensors.metadata() or {}).get("step", 0))
    return 0


def prune(folder: Path, step: int, keep_last: int, kept: set[int]) -> None:
    """Remove all but the last ones up to `step`, and those `kept`; of later ones, all."""
    found = checkpoints(folder)
    last = [path for path in found if step_of(path) <= step][-keep_last:]
    for path in found:
        if path not in last and (step_of(path) not in kept or step_of(path) > step):
            discard(path)


def discard(path: Path) -> None:
    """Remove a checkpoint so that a kill leaves none that looks finished."""
    aside = path.with_name(f".{path.name}.old")
    os.replace(path, aside)
    shutil.rmtree(aside)


def resumes(run: Path, resume: str) -> bool:
    """Whether a training of `run` goes on from a checkpoint, which has all the weights."""
    return resume != "never" and bool(checkpoints(run / "checkpoints"))


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def name_of(step: int) -> str:
    """The folder of the checkpoint of `step`."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The inverse of `name_of`."""
    return int(path.name.partition("-")[2])


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this wavefold reads format {FORMAT}"
        for name, entry in manifest["files"].items():
            if file_entry(path / name) != entry:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return None
