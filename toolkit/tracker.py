"""Trackers beside metrics.jsonl, W&B and TensorBoard, none of which can hold up a training.

Each is used by a daemon thread of its own. One that raises, keeps a call longer than `LIMIT` or
does not keep up is given up with one warning; the training goes on with metrics.jsonl alone.
"""

import importlib.util
import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from threading import Lock, Thread
from time import monotonic
from typing import Any

from shards.errors import UserError
from shards.index import write_atomic
from toolkit.environment import KEY_FILE, hide, wandb_key
from toolkit.hub import Pusher
from toolkit.results import read_json, redact
from toolkit.schema import Config, TrackConfig
from toolkit.wandb_run import WandbRun

log = logging.getLogger(__name__)

LIMIT = 30.0  #: seconds that a call may take, and the end of all trackers together
WAITING = 4096  #: calls that may wait for a slow tracker

ID_FILE = "wandb_id.txt"  #: in the run's folder: the W&B run that every start goes on with


class TensorBoard:
    """Event files; points of steps that are trained again replace those of the first time."""

    def __init__(self, folder: Path, step: int):
        self.folder, self.step = folder, step

    def start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = self.step + 1 if self.step else None
        self.writer = SummaryWriter(str(self.folder), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, file: Path) -> None:
        from matplotlib.image import imread

        pixels = imread(file)[..., :3]
        self.writer.add_image(name, pixels, self.step, dataformats="HWC")

    def close(self, whole: bool) -> None:
        self.writer.close()

    def kill(self) -> None:
        pass


class Aside:
    """A tracker used by a thread of its own: no call waits for it, none raises."""

    def __init__(self, name: str, tracker: WandbRun | TensorBoard):
        self.name, self.tracker = name, tracker
        self.calls: Queue[Sequence[Any]] = Queue(WAITING)
        self.calls.put(("start",))
        self.began: float | None = None  # when the call under way was made
        self.lock, self.given_up = Lock(), False
        self.thread = Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over numbers by name."""
        self._hand_over("log", step, values)

    def image(self, name: str, file: Path) -> None:
        """Hand over a PNG."""
        self._hand_over("image", name, file)

    def close(self, whole: bool) -> None:
        """Hand over the end, without waiting for it."""
        self._hand_over("close", whole)

    def wait(self, deadline: float) -> None:
        """Wait for the end until `deadline` (of `monotonic`) at most."""
        if not self.given_up:
            self.thread.join(max(0.0, deadline - monotonic()))
        if self.thread.is_alive():
            self.give_up(f"it was not done within {LIMIT:g} s")

    def give_up(self, reason: str) -> None:
        """Use the tracker no more."""
        with self.lock:
            if self.given_up:
                return
            self.given_up = True
        log.warning("%s is off from here on: %s; metrics.jsonl has it all", self.name, reason)
        self.tracker.kill()

    def _hand_over(self, *call: Any) -> None:
        began = self.began
        if self.given_up:
            return
        if began and monotonic() - began > LIMIT:
            return self.give_up(f"no answer for {LIMIT:g} s")
        try:
            self.calls.put_nowait(call)
        except Full:
            self.give_up(f"{WAITING} calls wait for it")

    def _work(self) -> None:
        try:
            name = ""
            while name != "close" and not self.given_up:
                self.began = None
                name, *words = self.calls.get()
                self.began = monotonic()
                getattr(self.tracker, name)(*words)
        except Exception as error:
            self.give_up(hide(" ".join(f"{type(error).__name__}: {error}".split())))


def close_all(trackers: Iterable[Aside | Pusher], whole: bool) -> None:
    """End all of them, within `LIMIT` seconds together."""
    deadline = monotonic() + LIMIT
    for tracker in trackers:
        tracker.close(whole)
    for tracker in trackers:
        tracker.wait(deadline)


def check_trackers(config: TrackConfig) -> None:
    """Raise a UserError for a tracker that is not installed, or has no key."""
    asked = {"wandb": config.wandb != "disabled", "tensorboard": config.tensorboard}
    for name in (name for name, is_asked in asked.items() if is_asked):
        spec = importlib.util.find_spec(name)
        if not (spec and spec.origin):  # a folder wandb/ that lies about is no package
            way = "pip install .[tensorboard]" if name == "tensorboard" else "pip install wandb"
            raise UserError(f"track.{name}={getattr(config, name)}: {name} is not installed; {way}")
    login = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()  # what `wandb login` writes
    if config.wandb == "online" and not wandb_key() and not login.exists():
        raise UserError(
            f"track.wandb=online: no key; set WANDB_API_KEY, put it into {KEY_FILE} in the working "
            "folder, or use track.wandb=offline"
        )


def open_trackers(config: Config, folder: Path, step: int) -> list[Aside | Pusher]:
    """The trackers that `config` asks for, of a run that goes on after `step`."""
    trackers: list[Aside | Pusher] = []
    if config.track.wandb != "disabled":
        key = wandb_key() if config.track.wandb == "online" else None
        trackers.append(Aside("W&B", WandbRun(wandb_settings(config, folder), key)))
    if config.track.tensorboard:
        trackers.append(Aside("TensorBoard", TensorBoard(folder / "tensorboard", step)))
    if config.hub.repo is not None:
        fold = None if config.data.protocol == "split" else config.data.fold
        trackers.append(Pusher(config.hub, folder, fold))
    return trackers


def wandb_settings(config: Config, folder: Path) -> dict[str, Any]:
    """What `wandb.init` is told: one W&B run a fold, the same one at every start."""
    known = folder / ID_FILE
    if not known.exists():
        write_atomic(known, secrets.token_hex(4).encode())
    parts = config.folder().relative_to(Path(config.run.dir, config.run.name)).parts
    return {
        "mode": config.track.wandb,
        "project": config.track.project,
        "entity": config.track.entity,
        "group": config.run.name,
        "name": "-".join([config.run.name, *parts]),
        "id": known.read_text().strip(),
        "dir": str(folder.absolute()),
        "config": redact(
            config.to_dict() | {"environment": read_json(folder / "environment.json")}
        ),
        "init_timeout": LIMIT,
    }
