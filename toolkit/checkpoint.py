"""Checkpoints: whole or not there, checked when read, tensors as safetensors and the rest JSON.

    checkpoints/step-00001200/model.safetensors [ema.safetensors] optimizer.safetensors
                              state.json manifest.json (bytes and SHA-256 of all others)
    checkpoints/latest

Tensors are whole, by name, whoever wrote them (toolkit.strategy). A thread of rank 0 writes them
while the training goes on (toolkit.snapshot). Every random draw of the training is a function of
(seed, step, place): no generator is saved.
"""

import errno
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.errors import UserError
from shards.index import ShardSet, file_entry, sync_folder, write_atomic
from shards.order import BatchPlan
from toolkit import history, signals
from toolkit.identity import changes, identity
from toolkit.metrics import SIGNS
from toolkit.schema import TrainConfig
from toolkit.snapshot import Snapshot
from toolkit.strategy import Strategy, Tensors
from toolkit.world import World

log = logging.getLogger(__name__)

FORMAT = 2
NONE, DAMAGED = -1, -2  # instead of the step to go on from


class Checkpoints:
    """Those of the run in `folder`, up to step `target`; every rank calls every method.

    The weights of the best epoch stand beside them as best.safetensors; where nothing is validated,
    those of the last step.
    """

    def __init__(
        self,
        folder: Path,
        strategy: Strategy,
        shard_set: ShardSet,
        train: TrainConfig,
        world: World,
        plan: BatchPlan,
        target: int,
    ):
        self.run, self.folder = folder, folder / "checkpoints"
        self.strategy, self.train, self.world, self.target = strategy, train, world, target
        self.identity = identity(strategy, shard_set)  # what may not change between two starts
        self.launch = {"world_size": world.size, "microbatch": plan.microbatch}  # what may
        self.launch["threads"] = torch.get_num_threads()
        self.stopping = False  #: whether a signal is to end the training
        self.step = 0  #: of the last checkpoint that was restored or begun
        self._since = time.monotonic()
        self._writer: threading.Thread | None = None
        self._snapshot: Snapshot | None = None
        self._failed: OSError | None = None
        self._owed: Tensors | None = None  # best weights that found no room
        strategy.before_step(self._hold)

    def restore(self) -> dict[str, Any]:
        """Load the newest sound checkpoint into model and optimiser; its state, `{}` if none is.

        Raises:
            UserError: it is of another model, other data or other classes; all are damaged; or
                there is none and `train.resume` is `must`.
        """
        found = torch.tensor([self._newest() if self.world.is_main else 0])
        self.step = int(broadcast(found.to(self.world.device)).item())
        if self.step == DAMAGED:
            raise UserError(
                f"{self.folder}: no checkpoint is sound; put one back from a copy, or start over "
                "with --train.resume=never"
            )
        if self.step == NONE:
            if self.train.resume == "must":
                raise UserError(
                    f"train.resume=must: there is no checkpoint in {self.folder}; "
                    "start it with --train.resume=auto"
                )
            self.step = 0
            return {}
        path = self.folder / name_of(self.step)
        stored = json.loads((path / "state.json").read_text())
        changed = changes(stored["identity"], self.identity)
        if changed:
            raise UserError(
                f"{path} is of another training ({'; '.join(changed)}); bring back what changed, "
                "give this one another --run.name, or start over with --train.resume=never"
            )
        self._load(path)
        if self.world.is_main and stored["launch"] != self.launch:
            log.info("launched otherwise than before (%s): sums may round differently, samples and "
                     "their order stay", compare(stored["launch"], self.launch))  # fmt: skip
        return stored["state"]

    def keep_best(self, state: dict[str, Any]) -> None:
        """Write best.safetensors if that is where training goes on: a kill may have come between
        the checkpoint and them."""
        if self.world.is_main and self.step and self._is_best(state):
            weights = load_file(self.folder / name_of(self.step) / self._judged)
            write_tensors(self.run / "best.safetensors", weights)

    def wishes(self) -> frozenset[str]:
        """What this rank asks the others to do after the next step."""
        minutes = (time.monotonic() - self._since) / 60
        late = self.world.is_main and 0 < self.train.save_minutes <= minutes
        return frozenset(["save"] * late + ["stop"] * (signals.received() > 0))

    def due(self, step: int, ends: bool, asked: frozenset[str]) -> bool:
        """Whether to save `step`, which may end an epoch, and after which some rank has `asked`."""
        self.stopping = "stop" in asked
        every = self.train.save_every
        return ends or bool(asked) or (every > 0 and step % every == 0)

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint of `state["step"]`, once the one before it is written."""
        self._settle()
        groups = self.strategy.tensors()
        self.step, self._since = state["step"], time.monotonic()
        if not self.world.is_main:
            return
        self._snapshot = Snapshot(groups)
        contents = {"state": state, "identity": self.identity, "launch": self.launch}
        text = json.dumps(contents)  # now: the loop goes on to change it
        words = (self._snapshot, text, self._is_best(state), self._kept(state))
        self._writer = threading.Thread(target=self._write, args=words, name="checkpoint")
        self._writer.start()

    def close(self) -> None:
        """Wait for the last checkpoint, and where a signal asked for it end here, with code 75.

        Raises:
            OSError: the checkpoint could not be written.
        """
        self._settle()
        failed = (self._failed.errno or errno.EIO) if self._failed else 0
        mine = torch.tensor([[failed, signals.received()]], device=self.world.device)
        failed, signal = gather(mine).amax(dim=0).tolist()
        if failed:
            raise OSError(failed, os.strerror(failed), str(self.folder))
        if signal:
            if self.world.is_main:
                signals.mark(self.run, signal, self.step)
            self.strategy.accelerator.wait_for_everyone()  # the first to leave takes all along
            self.strategy.accelerator.end_training()
            raise SystemExit(signals.REQUEUE)

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._writer is not None and self._writer.is_alive()

    @property
    def _judged(self) -> str:
        """The file of the weights that are evaluated."""
        return "ema.safetensors" if self.strategy.average else "model.safetensors"

    def _hold(self) -> None:
        """Before an optimiser's step: what it will change has to be copied."""
        if self._snapshot:
            self._snapshot.hold()
            self._snapshot = None

    def _settle(self) -> None:
        """Wait until nothing is being written."""
        if self._writer:
            self._writer.join()
        self._writer = self._snapshot = None

    def _newest(self) -> int:
        """The step of the newest sound checkpoint, after removing what a kill has left behind."""
        signals.unmark(self.run)
        for left in self.folder.glob(".step-*"):
            shutil.rmtree(left)
        found = checkpoints(self.folder)
        for path in reversed(found):
            fault = damage(path)
            if not fault:
                return step_of(path)
            log.warning("%s is damaged (%s); trying the one before it", path, fault)
        return DAMAGED if found else NONE

    def _load(self, path: Path) -> None:
        self.strategy.load_weights(load_file(path / "model.safetensors"))
        self.strategy.load_moments(load_file(path / "optimizer.safetensors"))
        if self.strategy.average:
            self.strategy.average.module.load_state_dict(load_file(path / "ema.safetensors"))

    def _is_best(self, state: dict[str, Any]) -> bool:
        """Whether best.safetensors has to hold the weights of `state`."""
        best = history.best(state["history"], self.train.best_metric)
        return best["step"] == state["step"] if best else state["step"] >= self.target

    def _kept(self, state: dict[str, Any]) -> set[int]:
        """The steps of the best epochs, whose checkpoints stay."""
        metric = self.train.best_metric
        ranked = sorted(state["history"], key=lambda entry: -SIGNS[metric] * entry[metric])
        return {entry["step"] for entry in ranked[: self.train.keep_best]}

    def _write(self, snapshot: Snapshot, text: str, best: bool, kept: set[int]) -> None:
        """The writer's thread. What it cannot write costs a line, and `close` an error."""
        step, began = self.step, time.monotonic()
        try:
            groups = snapshot.take()
            judged = groups[self._judged.partition(".")[0]]
            self._owed = judged if best else self._owed
            if self._owed is not judged and self._owed:
                write_tensors(self.run / "best.safetensors", self._owed)
            write(self.folder, step, groups, text)
            if best:  # last: the history of every checkpoint tells of best weights that are there
                write_tensors(self.run / "best.safetensors", judged)
            self._owed = None
            prune(self.folder, step, self.train.keep_last, kept)
            self._failed = None
        except Exception as error:
            self._failed = as_os_error(error, self.folder)
            log.warning("the checkpoint of step %d could not be written (%s); training goes on, "
                        "and those before it stay", step, error)  # fmt: skip
        signals.check_grace(time.monotonic() - began)


def write(folder: Path, step: int, groups: Mapping[str, Tensors], text: str) -> None:
    """Write a checkpoint aside, fsync, rename, fsync the folder."""
    path, aside = folder / name_of(step), folder / f".{name_of(step)}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for part, tensors in groups.items():
            save_file(tensors, aside / f"{part}.safetensors")
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
    write_atomic(folder / "latest", path.name.encode())


def write_tensors(file: Path, tensors: Tensors) -> None:
    """Write a safetensors file whole or not at all."""
    aside = file.with_name(f".{file.name}.tmp")
    try:
        save_file(tensors, aside)
        sync_folder(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(file.parent)


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
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """`world_size 2, now 1`, of what differs."""
    return ", ".join(f"{k} {there.get(k)}, now {v}" for k, v in here.items() if there.get(k) != v)


def as_os_error(error: Exception, folder: Path) -> OSError:
    """`error` with the errno that safetensors has put into words."""
    found = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return OSError(code or errno.EIO, str(error), str(folder))
