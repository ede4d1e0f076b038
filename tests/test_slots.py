"""shards.slots: what workers lend, and how runs of items end."""

import mmap
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shards.crew import _spare, kept
from shards.slots import COUNT, SIZE, make_slots
from shards.workers import in_runs, ordered

Task = tuple[int, int, str]


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def two_buffers(task: Task) -> tuple[pickle.PickleBuffer, ...]:
    """Of a size, unless the worker that is to make them dies; it does so once."""
    seed, size, file = task
    if file and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return tuple(pickle.PickleBuffer(noise(seed + k, size)) for k in range(2))


def never(task: Task, reason: str) -> tuple[pickle.PickleBuffer, ...]:
    raise AssertionError(reason)


@pytest.mark.parametrize("run", [1, 3])
def test_what_is_lent_is_right_until_the_next_is_asked_for(tmp_path: Path, run: int) -> None:
    """In a slot, larger than one, behind a worker that died, and where all slots are in use."""
    sizes = [100, 50_000, SIZE // 2, SIZE // 2 + 1, SIZE + 1] * 8
    tasks = [(2 * n, size, str(tmp_path / "died") * (n == 9)) for n, size in enumerate(sizes)]
    lent = set()
    with kept():
        for count in (7, len(tasks)):  # left early; then by the same workers, to the end
            runs = in_runs(tasks, run)
            results = ordered(two_buffers, runs, 2, timeout=9, lost=never, lends=True)
            for seed, size, _ in tasks[:count]:
                buffers = next(results)
                if seed % 8 == 0:
                    time.sleep(0.05)  # workers get as far ahead as they may
                assert [bytes(x) for x in buffers] == [noise(seed + k, size) for k in range(2)]
                lent |= {size for x in buffers if isinstance(getattr(x, "obj", x), mmap.mmap)}
            results.close()
        free = [sorted(worker.slots.free) for worker in _spare.get() or [] if worker.slots]
    if sys.platform == "linux":
        assert lent == {50_000, SIZE // 2, SIZE // 2 + 1}
        assert free and all(some == [*range(COUNT)] for some in free)


def test_a_slot_is_taken_once_and_all_cost_one_descriptor() -> None:
    if sys.platform != "linux":
        pytest.skip("memfd is Linux's")
    before = len(os.listdir("/proc/self/fd"))
    slots = make_slots()
    slots.settle()
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the map's own
    taken = [slots.take() for _ in range(COUNT)]
    assert sorted(taken) == [*range(COUNT)] and slots.take() is None
    slots[3][:] = bytes([7]) * SIZE
    assert not any(slots[2]) and not any(slots[4]) and slots[3][-1] == 7
    del slots
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_such_memory_all_goes_behind_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert make_slots() is None
    tasks = [(n, 50_000, "") for n in range(4)]
    results = ordered(two_buffers, in_runs(tasks, 2), 1, timeout=9, lost=never, lends=True)
    for seed, size, _ in tasks:
        assert [bytes(x) for x in next(results)] == [noise(seed + k, size) for k in range(2)]
    results.close()


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_the_last_runs_are_short(workers: int) -> None:
    """No worker still has much to do when the others are done, and no run is shorter than that."""
    sizes = np.random.default_rng(workers).uniform(0.1, 9, 400).tolist()
    left = total = sum(sizes)
    runs = list(in_runs(sizes, 30, float, total, workers))
    assert [size for run in runs for size in run] == sizes
    for run, after in zip(runs, [*runs[1:], [1e9]], strict=True):
        most = min(30, left / (2 * workers)) + 1e-6
        assert len(run) == 1 or sum(run) <= most
        assert sum(run) + after[0] > most - 1e-5
        left -= sum(run)
