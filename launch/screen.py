"""All trainings of a run on one screen: a line each on a terminal, plain lines off it."""

import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from tqdm import tqdm

from launch.job import Job
from shards.progress import duration

EVERY = 60.0  # seconds between two lines of a training, off a terminal
FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"


class Screen:
    """What is shown of `jobs`, at most `slots` of which train at a time."""

    def __init__(self, jobs: Sequence[Job], slots: int):
        self.jobs, self.live = jobs, sys.stderr.isatty()
        self.width = max(len(job.name) for job in jobs)
        self._bars = [bar(place, f"{'':{self.width}}") for place in range(slots * self.live)]
        self._all = bar(slots, f"{'all':{self.width}}", len(jobs)) if self.live else None
        self._told = dict.fromkeys(jobs, 0.0)
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        """A line that stays."""
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()

    def tell(self, job: Job, line: str) -> None:
        """A line about one training."""
        self._told[job] = time.monotonic()
        self.say(f"{job.name:{self.width}}  {line}")

    def show(self) -> None:
        """How far each has got."""
        training = [job for job in self.jobs if job.state == "training"]
        if self._all is None:
            for job in training:
                if time.monotonic() - self._told[job] >= EVERY:
                    self.tell(job, words(job))
            return
        for line, job in zip(self._bars, training, strict=False):
            now = job.progress()
            line.total, line.n = job.target, now.get("step", 0)
            line.set_description_str(f"{job.name:{self.width}}", refresh=False)
            line.set_postfix_str(short(job, now), refresh=False)
            line.refresh()
        for line in self._bars[len(training) :]:
            line.display("")
        ended = sum(job.state in ("done", "stopped", "failed") for job in self.jobs)
        self._all.n = ended
        self._all.set_postfix_str(duration(time.monotonic() - self._began), refresh=False)
        self._all.refresh()

    def close(self) -> None:
        """Leave the terminal as it was."""
        for line in [*self._bars, *([self._all] if self._all else [])]:
            line.leave = False
            line.close()
        if self.live:
            sys.stderr.write("\r")


def bar(place: int, name: str, total: int | None = None) -> "tqdm[NoReturn]":
    """A line of the screen."""
    return tqdm(total=total, desc=name, position=place, bar_format=FORMAT, dynamic_ncols=True)


def short(job: Job, now: dict[str, float]) -> str:
    """Epoch, loss and the time that is left, of a training's last numbers `now`."""
    if not now:
        return f"starting {job.place}"
    rate = (job.target or now["step"]) / now["step"] - 1
    return f"epoch {now['epoch']}  loss {now['loss']:.4f}  {duration(now['seconds'] * rate)} left"


def words(job: Job) -> str:
    """A training's line off the terminal."""
    now = job.progress()
    return f"step {now['step']}/{job.target or '?'}  {short(job, now)}" if now else "starting"
