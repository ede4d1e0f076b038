"""A run's folder belongs to one training at a time: lock.json in it, renewed while it trains.

Made by `link`, which NFS does whole or not at all where its `flock` may do nothing. Whoever finds
one decides whether its owner lives: by its process on the same machine, by Slurm where both are its
jobs, else by the time of its last sign of life, taken by the file server's clock.

    {"host": "n1", "pid": 4711, "job": "12_3", "life": 0, "since": "2026-01-31T12:00:00Z", ...}
"""

import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import TrainingError, UserError
from toolkit.owner import Owner, ended, name, parse, this_process, why_gone

log = logging.getLogger(__name__)

NAME = "lock.json"
BEAT = 5.0  # seconds between two signs of life, and looks whether the lock is still ours
STALE = 300.0  # seconds without one: the owner is gone, on a machine that we cannot look at
DYING = 3.0  # seconds that a killed process may take to give back its memory
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # of a file system

_held: "Lock | None" = None


class Lock:
    """The lock of the run in `folder`; its thread renews it, and ends a training that lost it."""

    def __init__(self, folder: Path):
        self.file = folder / NAME
        self.me = this_process()
        self._clock = 0.0  # the file server's
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def take(self) -> None:
        """Take it, from an owner that has gone if need be.

        Raises:
            UserError: another training has it.
        """
        deadline, cut_off = time.monotonic() + DYING, False
        while not self._create():
            there = self._read()
            if there is None:
                continue  # given back in between
            silence = self._silence()
            why = why_gone(there, self.me, silence, STALE)
            if why:
                self._put_away(there)
                log.info("%s: taken over from process %s on %s: %s",
                         self.file.parent, there["pid"], there["host"], why)  # fmt: skip
                cut_off = silence < 2 * BEAT and not ended(there)
            elif time.monotonic() > deadline:
                raise UserError(
                    f"{self.file.parent} is being trained by {name(there)}; wait for it or stop it"
                    + self._patience(there, silence)
                )
            else:
                time.sleep(0.1)
        self._thread.start()
        if cut_off:  # the owner may run, and has seen by then that it lost
            time.sleep(1.5 * BEAT)

    def give_back(self) -> None:
        """Let others have the folder; one in which nothing came about goes."""
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            if (self._read() or {}).get("token") == self.me["token"]:
                self.file.unlink()
            for folder in (self.file.parent, *self.file.parents[1:3]):
                folder.rmdir()

    def check(self) -> None:
        """Raise a TrainingError if another training has taken it over, as after a long sleep."""
        there = self._read()
        if there and there["token"] != self.me["token"]:
            raise TrainingError(
                f"{self.file.parent} was taken over by {name(there)}; this training ends"
            )

    def _create(self) -> bool:
        aside = self.file.with_name(f".{NAME}.{self.me['token']}")
        try:
            aside.write_text(json.dumps(self.me) + "\n")
            self._clock = aside.stat().st_mtime
            os.link(aside, self.file)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                with open(self.file, "x") as out:
                    out.write(json.dumps(self.me) + "\n")
            except FileExistsError:
                return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _read(self) -> Owner | None:
        try:
            return parse(self.file.read_text())
        except FileNotFoundError:
            return None

    def _patience(self, there: Owner, silence: float) -> str:
        """How long to wait for an owner that cannot be looked at."""
        if there["machine"] == self.me["machine"]:
            return ""
        return f": {STALE:.0f} s without a sign of life count as gone, it is {silence:.0f} s"

    def _silence(self) -> float:
        """Seconds since the owner's last sign of life."""
        try:
            return self._clock - self.file.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _put_away(self, there: Owner) -> None:
        """Remove the lock of `there`, and no other: two may find it at the same moment."""
        aside = self.file.with_name(f".{NAME}.{self.me['token']}.old")
        with suppress(FileNotFoundError):
            os.rename(self.file, aside)
            if parse(aside.read_text())["token"] != there["token"]:
                with suppress(FileExistsError):
                    os.link(aside, self.file)
            aside.unlink()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self.check()
                os.utime(self.file)
            except FileNotFoundError:  # somebody's `rm`
                with suppress(OSError):
                    self._create()
            except OSError as error:  # a file server that is away comes back
                log.debug("%s: %s", self.file, error)
            except TrainingError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(1)


def hold(folder: Path) -> None:
    """Take the lock of the run in `folder` for this process, until `releasing` gives it back."""
    global _held
    release()
    lock = Lock(folder)
    lock.take()
    _held = lock


def release() -> None:
    """Give back what this process holds."""
    global _held
    if _held:
        _held.give_back()
    _held = None


def check() -> None:
    """Raise a TrainingError if the lock that this process held is another's by now."""
    if _held:
        _held.check()


@contextmanager
def releasing() -> Iterator[None]:
    """At its end, whatever it is, the lock is given back."""
    try:
        yield
    finally:
        release()
