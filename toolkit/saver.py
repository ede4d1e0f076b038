"""Checkpoints of a running training: when, which stay, written by a thread while it goes on."""

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
from safetensors.torch import load_file

from shards.errors import UserError
from shards.index import ShardSet
from shards.order import BatchPlan, Order
from toolkit import checkpoint, history, lock, signals
from toolkit.hub import epoch_file
from toolkit.identity import changes, identity
from toolkit.metrics import SIGNS
from toolkit.schema import TrainConfig
from toolkit.snapshot import Snapshot
from toolkit.strategy import Strategy, Tensors
from toolkit.world import World

log = logging.getLogger(__name__)

BEFORE = "best-before.safetensors"  #: the best weights before those of best.safetensors


class Saver:
    """The checkpoints of the run in `folder`, up to step `target`; every rank calls every method.

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
        order: Order,
        target: int,
    ):
        self.run, self.folder = folder, folder / "checkpoints"
        self._best, self._before = folder / "best.safetensors", self.folder / BEFORE
        self.strategy, self.train, self.world, self.target = strategy, train, world, target
        self.identity = identity(strategy, shard_set, order)  # what no second start may change
        self.launch = {"world_size": world.size, "microbatch": plan.microbatch}  # what may
        self.launch["threads"] = torch.get_num_threads()
        self.stopping = False  #: whether a signal is to end the training
        self.step = 0  #: of the last checkpoint that was restored or begun
        self._epoch = 0  # that the restored one ends; 0: none
        self._since = time.monotonic()
        self._writer: threading.Thread | None = None
        self._snapshot: Snapshot | None = None
        self._failed: OSError | None = None
        self._copies: dict[str, Tensors] = {}  # of the last checkpoint
        self._owed: tuple[Tensors, int] | None = None  # best weights that found no room
        strategy.before_step(self._hold)

    def restore(self) -> dict[str, Any]:
        """Load the newest sound checkpoint into model and optimiser; its state, `{}` if none is.

        Raises:
            UserError: it is of another model, other data or other classes; all are damaged; or
                there is none and `train.resume` is `must`.
        """
        found = torch.tensor([self._newest() if self.world.is_main else 0])
        self.step = int(broadcast(found.to(self.world.device)).item())
        if self.step == checkpoint.DAMAGED:
            raise UserError(
                f"{self.folder}: no checkpoint is sound; put one back from a copy, or start over "
                "with --train.resume=never"
            )
        if self.step == checkpoint.NONE:
            if self.train.resume == "must":
                raise UserError(
                    f"train.resume=must: there is no checkpoint in {self.folder}; "
                    "start it with --train.resume=auto"
                )
            self.step = 0
            return {}
        path = self.folder / checkpoint.name_of(self.step)
        stored = json.loads((path / "state.json").read_text())
        changed = changes(stored["identity"], self.identity)
        if changed:
            raise UserError(
                f"{path} is of another training ({'; '.join(changed)}); bring back what changed, "
                "give this one another --run.name, or start over with --train.resume=never"
            )
        self._load(path)
        self._epoch = stored["epoch"]
        if self.world.is_main and stored["launch"] != self.launch:
            log.info("launched otherwise than before (%s): sums may round differently, samples and "
                     "their order stay", compare(stored["launch"], self.launch))  # fmt: skip
        return stored["state"]

    def catch_up(self, state: dict[str, Any]) -> None:
        """Do what follows the checkpoint that training goes on from: a kill may have come between.
        What ends with it has no other that would do it."""
        if not self.world.is_main or not self.step:
            return
        path, epoch = self.folder / checkpoint.name_of(self.step), self._epoch
        if self._is_best(state):
            self._write_best(load_file(path / self._judged), self.step)
        else:
            self._mend_best(state)
        if epoch and self.train.keep_epochs and not epoch_file(self.run, epoch).exists():
            file = epoch_file(self.run, epoch)
            checkpoint.write_tensors(file, load_file(path / self._judged), self.step)
        checkpoint.point_to(self.folder, self.step)
        checkpoint.prune(self.folder, self.step, self.train.keep_last, self._kept(state))

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

    def save(self, state: dict[str, Any], epoch: int = 0) -> None:
        """Begin to write a checkpoint of `state["step"]`, which ends `epoch` or none (0), once the
        one before it is written."""
        self._settle()
        groups = self.strategy.tensors()
        self.step, self._since = state["step"], time.monotonic()
        if not self.world.is_main:
            return
        self._snapshot = Snapshot(groups, {} if self._owed else self._copies)
        contents = {"state": state, "identity": self.identity, "launch": self.launch}
        text = json.dumps(contents | {"epoch": epoch})  # now: the loop goes on to change it
        words = (self._snapshot, text, self._is_best(state), self._kept(state), epoch)
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
        found = checkpoint.checkpoints(self.folder)
        for path in reversed(found):
            fault = checkpoint.damage(path)
            if not fault:
                return checkpoint.step_of(path)
            log.warning("%s is damaged (%s); trying the one before it", path, fault)
        return checkpoint.DAMAGED if found else checkpoint.NONE

    def _load(self, path: Path) -> None:
        if self.strategy.average:
            self.strategy.load_average(load_file(path / "ema.safetensors"))
        self.strategy.load_weights(load_file(path / "model.safetensors"))
        self.strategy.load_moments(load_file(path / "optimizer.safetensors"))

    def _is_best(self, state: dict[str, Any]) -> bool:
        """Whether best.safetensors has to hold the weights of `state`."""
        best = history.best(state["history"], self.train.best_metric)
        return best["step"] == state["step"] if best else state["step"] >= self.target

    def _write_best(self, tensors: Tensors, step: int) -> None:
        """Write the best weights; those before them stay, should this checkpoint be damaged."""
        if (checkpoint.step_in(self._best) or step) != step:
            checkpoint.copy(self._best, self._before)
        checkpoint.write_tensors(self._best, tensors, step)

    def _mend_best(self, state: dict[str, Any]) -> None:
        """Bring the best weights up to `state` back: where later checkpoints were damaged,
        best.safetensors may hold later ones."""
        entry = history.best(state["history"], self.train.best_metric)
        if not entry or checkpoint.step_in(self._best) == entry["step"]:
            return
        path = self.folder / checkpoint.name_of(entry["step"])
        if checkpoint.step_in(self._before) == entry["step"]:
            checkpoint.copy(self._before, self._best)
        elif not checkpoint.damage(path):
            checkpoint.copy(path / self._judged, self._best)
        else:
            log.warning("%s is not of step %d, the best so far, whose weights are gone",
                        self._best, entry["step"])  # fmt: skip

    def _kept(self, state: dict[str, Any]) -> set[int]:
        """The steps of the best epochs, whose checkpoints stay."""
        metric = self.train.best_metric
        ranked = sorted(state["history"], key=lambda entry: -SIGNS[metric] * entry[metric])
        return {entry["step"] for entry in ranked[: self.train.keep_best]}

    def _write(self, snapshot: Snapshot, text: str, best: bool, kept: set[int], epoch: int) -> None:
        """The writer's thread. What it cannot write costs a line, and `close` an error."""
        step, began = self.step, time.monotonic()
        try:
            lock.check()
            groups = self._copies = snapshot.take()
            judged = groups[self._judged.partition(".")[0]]
            if self._owed and not best:
                self._write_best(*self._owed)
            self._owed = (judged, step) if best else None
            checkpoint.write(self.folder, step, groups, text)
            if best:  # last: the history of every checkpoint tells of best weights that are there
                self._write_best(judged, step)
            self._owed = None
            if epoch and self.train.keep_epochs:
                checkpoint.write_tensors(epoch_file(self.run, epoch), judged, step)
            checkpoint.prune(self.folder, step, self.train.keep_last, kept)
            self._failed = None
        except Exception as error:
            self._failed = as_os_error(error, self.folder)
            log.warning("the checkpoint of step %d could not be written (%s); those before it stay",
                        step, error)  # fmt: skip
        signals.check_grace(time.monotonic() - began)


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """`world_size 2, now 1`, of what differs."""
    return ", ".join(f"{k} {there.get(k)}, now {v}" for k, v in here.items() if there.get(k) != v)


def as_os_error(error: Exception, folder: Path) -> OSError:
    """`error` with the errno that safetensors has put into words."""
    found = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return OSError(code or errno.EIO, str(error), str(folder))
