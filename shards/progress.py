"""How far a long piece of work is: a bar on a terminal, a line every 30 s off it."""

import logging
import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Thing = TypeVar("Thing")

EVERY = 30.0  # seconds between lines


class Progress:
    """Counts things done, and the seconds of audio in them; a context manager.

    The rate, the real-time factor and the time that remains go by what this process did: what
    `done` things a start before this one left is not counted into them.
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "recordings") -> None:
        self.what, self.total, self.done, self.before, self.unit = what, total, done, done, unit
        self.seconds = 0.0
        self.began = self.told = monotonic()
        on_terminal = sys.stderr.isatty()
        self.bar = (
            tqdm(
                desc=what,
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=total > 10**6,
                leave=False,
            )
            if on_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, seconds: float = 0.0, count: int = 1) -> None:
        """One more (or `count`) is done, with that much audio in it."""
        self.done += count
        self.seconds += seconds
        now = monotonic()
        if self.bar is not None:
            if self.seconds:
                self.bar.set_postfix_str(self.speed(now), refresh=False)
            self.bar.update(count)
        elif now - self.told >= EVERY:
            self.told = now
            logger.info("%s", self.line(now))

    def through(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """The things, each counted as the next one is asked for."""
        for thing in things:
            yield thing
            self.update()

    def speed(self, now: float) -> str:
        """The real-time factor: seconds of audio a second."""
        return f"{self.seconds / max(1e-9, now - self.began):.0f}x real time"

    def line(self, now: float) -> str:
        """`build: 1200 of 4000 recordings, 40.0 a second, 200x real time, 70 s left`."""
        rate = (self.done - self.before) / max(1e-9, now - self.began)
        words = [f"{self.what}: {self.done} of {self.total} {self.unit}", f"{rate:.1f} a second"]
        words += [self.speed(now)] * bool(self.seconds)
        return ", ".join([*words, f"{duration((self.total - self.done) / max(1e-9, rate))} left"])


def with_progress(
    things: Iterable[Thing], what: str, total: int, unit: str = "recordings"
) -> Iterator[Thing]:
    """The things, `total` of them, through a Progress of their own."""
    with Progress(what, total, unit=unit) as progress:
        yield from progress.through(things)


def duration(seconds: float) -> str:
    """Seconds as people say them: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
