"""How far a long piece of work is: a bar on a terminal, a line every 30 s off it."""

import logging
import sys
from time import monotonic
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between lines


class Progress:
    """Counts things done, and the seconds of audio in them; a context manager.

    The rate, the real-time factor and the time that remains go by what this process did: what
    `done` things a start before this one left is not counted into them.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.before = what, total, done, done
        self.seconds = 0.0
        self.began = self.told = monotonic()
        on_terminal = sys.stderr.isatty()
        self.bar = (
            tqdm(desc=what, total=total, initial=done, unit="rec", leave=False)
            if on_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, seconds: float = 0.0) -> None:
        """One more is done, with that much audio in it."""
        self.done += 1
        self.seconds += seconds
        now = monotonic()
        if self.bar is not None:
            if self.seconds:
                self.bar.set_postfix_str(self.speed(now), refresh=False)
            self.bar.update()
        elif now - self.told >= EVERY:
            self.told = now
            logger.info("%s", self.line(now))

    def speed(self, now: float) -> str:
        """The real-time factor: seconds of audio a second."""
        return f"{self.seconds / max(1e-9, now - self.began):.0f}x real time"

    def line(self, now: float) -> str:
        """`build: 1200 of 4000 recordings, 40.0 a second, 200x real time, 70 s left`."""
        rate = (self.done - self.before) / max(1e-9, now - self.began)
        words = [f"{self.what}: {self.done} of {self.total} recordings", f"{rate:.1f} a second"]
        words += [self.speed(now)] * bool(self.seconds)
        return ", ".join([*words, f"{(self.total - self.done) / max(1e-9, rate):.0f} s left"])
