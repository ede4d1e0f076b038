"""SIGTERM and SIGUSR1 ask a training to end: after a step, with a checkpoint, by exit code 75.

A handler only notes the signal, so a second one interrupts nothing. The ranks agree at the next
step (Saver.due), and once the checkpoint stands rank 0 leaves a file in the run's folder for
the batch script, since launchers return 1 whatever their workers do:

    requeue     {"step": 1200, "signal": "SIGUSR1", "host": "n1", "time": "2026-01-31T12:00:00Z"}
"""

import ctypes
import json
import logging
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.durable import write_atomic
from toolkit.world import grace, under_launcher

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: start me again
MARKER = "requeue"
PR_SET_PDEATHSIG = 1

_noted: list[int] = []


def received() -> int:
    """The signal that came last, 0 if none did."""
    return _noted[-1] if _noted else 0


@contextmanager
def noting(signals: Sequence[signal.Signals], noted: list[int]) -> Iterator[None]:
    """Within it these signals are noted in the list, and do nothing else; it is empty after it."""
    before = [signal.signal(one, lambda number, _: noted.append(number)) for one in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)
        noted.clear()


@contextmanager
def noted() -> Iterator[None]:
    """Within it the signals are noted and end nothing; so is the death of a launcher.

    `accelerate launch` dies of SIGUSR1, and of SIGTERM where it started one process, and leaves its
    workers running: they take its death for a SIGTERM.
    """
    with noting(SIGNALS, _noted):
        if under_launcher():
            end_with_parent()
        yield


def end_with_parent() -> None:
    """Have a SIGTERM come when the parent dies, so that nothing trains on unseen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def mark(run: Path, number: int, step: int) -> None:
    """Leave the marker, and say so."""
    name = signal.Signals(number).name
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    note = {"step": step, "signal": name, "host": platform.node(), "time": now}
    write_atomic(run / MARKER, (json.dumps(note) + "\n").encode())
    log.info("%s: stopped by %s after step %d, with a checkpoint; start again to go on",
             run, name, step)  # fmt: skip


def unmark(run: Path) -> None:
    """Remove the marker of an earlier start."""
    (run / MARKER).unlink(missing_ok=True)


def check_grace(seconds: float) -> None:
    """Warn if a checkpoint that took so long would not be written before a launcher kills."""
    if seconds > grace() / 2:
        log.warning(
            "a checkpoint took %.0f s to write, and the launcher kills %d s after a SIGTERM; "
            "export PET_SHUTDOWN_TIMEOUT=%d before it", seconds, grace(), max(60, 4 * seconds),
        )  # fmt: skip
