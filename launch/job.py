"""One training of a run on this machine: its process, its log, and how far it has got."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launch.tasks import Task
from shards.errors import UserError
from shards.index import write_atomic
from toolkit.data import open_parts
from toolkit.results import read_records
from toolkit.schema import Config
from toolkit.signals import MARKER, REQUEUE, end_with_parent, unmark

PROGRAM = Path(__file__).parent.parent / "train.py"
LOG = "train.log"
TAIL = 8192  #: bytes of metrics.jsonl that are read: the last lines
CRASHES = 2  #: the second one is the last


class Job:
    """A task that waits, trains and ends; it is started again where it was told to stop alone, and
    once after a crash."""

    def __init__(self, task: Task, config: Config):
        self.name, self.config = task.name or config.run.name, config
        self.folder = config.folder()
        self.log = self.folder / LOG
        self.state = "waiting"  #: | training | done | stopped | failed
        self.target: int | None = None  #: its last step
        self.crashes = 0
        self.place = ""  #: where it trains
        self.why = ""  #: what its process said at its end
        self.seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._offset = 0.0
        self._first: float | None = None  # start, by the clock of the file system

    def start(self, place: str, environment: Mapping[str, str], threads: int) -> None:
        """Train in a process that Ctrl-C does not reach, and that ends when this one does."""
        self.state, self.place, self._began = "training", place, time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        unmark(self.folder)  # or a crash before the training looks would count as a stop
        config = self.folder / "launch.yaml"  # whoever edits the config now changes nothing
        text = yaml.safe_dump(self.config.to_dict(), sort_keys=False)
        write_atomic(config, text.encode())
        words = [sys.executable, str(PROGRAM), str(config)]
        words += [] if self.config.train.threads else [f"--train.threads={threads}"]
        words += ["--train.resume=auto"] if self._began_anew() else []
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
        with open(self.log, "ab") as log:
            self._offset = log.tell()
            self._process = subprocess.Popen(
                words, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip

    def _began_anew(self) -> bool:
        """Whether train.resume=never has been done: what is there is of this launch."""
        note = self.folder / "environment.json"  # written after the old was removed
        if self._first is None:
            self._first = (self.folder / "launch.yaml").stat().st_mtime
            return False
        if self.config.train.resume != "never" or not note.exists():
            return False
        return note.stat().st_mtime >= self._first

    def tell(self, number: int) -> None:
        """Send it a signal."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def ended(self, stopping: bool) -> bool:
        """Whether its process has ended; then `state` says how, `waiting` if it is to go on."""
        code = self._process.poll() if self._process else None
        if code is None:
            return False
        self.seconds += time.monotonic() - self._began
        self.state = self._judge(code, stopping)
        self.why = "told to stop" if code == REQUEUE else f"{ending(code)}: {self.last_words()}"
        self._process = None
        return True

    def _judge(self, code: int, stopping: bool) -> str:
        if code == 0:
            return "done"
        asked = code == REQUEUE or (self.folder / MARKER).exists()
        if stopping and (asked or code in (-signal.SIGTERM, -signal.SIGKILL)):
            return "stopped"
        if asked:
            return "waiting"
        self.crashes += code != 2  # 2: the words are off, and stay so
        return "waiting" if code != 2 and self.crashes < CRASHES and not stopping else "failed"

    def last_words(self) -> str:
        """The last error line of its log since it was started, or the last line of all."""
        with open(self.log, "rb") as log:
            log.seek(int(self._offset))
            lines = log.read().decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")

    def progress(self) -> dict[str, Any]:
        """The last of its numbers: step, epoch, loss; empty before the first."""
        if self.target is None:
            self.target = last_step(self.config)
        lines = read_records(self.folder / "metrics.jsonl", TAIL)
        return next((line for line in reversed(lines) if line.get("kind") == "train"), {})

    def score(self) -> float | None:
        """Its accuracy over recordings, once it is done."""
        try:
            scores = json.loads((self.folder / "scores.json").read_text())
            return float(scores["recording"]["accuracy"])
        except (OSError, ValueError, KeyError):
            return None


def ending(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def last_step(config: Config) -> int | None:
    """The step at which a training ends, unless it stops early; None if the data say no."""
    try:
        order = open_parts(replace(config, data=replace(config.data, stage=None))).order
    except (UserError, OSError):
        return None  # the training says it
    total = order.steps_per_epoch * config.train.epochs
    return min(total, config.train.max_steps or total)
