"""shards.workers: results in order, and an item that kills or holds up its process costs itself."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tones, hashes
from media import riff

from shards import plan as plan_module
from shards.condition import Conditioning
from shards.crew import PRELOAD, TRIES, Crew, Task, Worker, dismiss, kept
from shards.errors import UserError
from shards.manifest import Reject, scan
from shards.mel import MelSettings
from shards.process import Stages, receive
from shards.recipe import Heard, Recipe
from shards.recording import Piece
from shards.workers import in_runs, ordered


def pair(item: object, reason: str) -> tuple[object, str]:
    return item, reason


def fate(word: str) -> tuple[object, str]:
    """Do what the word says."""
    name, _, rest = word.partition(" ")
    if name == "die":
        with open(rest, "a") as tally:
            tally.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "die-once" and not Path(rest).exists():
        Path(rest).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(60)
    if name == "fail":
        raise LookupError(rest)
    return word, "x" * (1 << 20 if name == "large" else 1)


@pytest.mark.parametrize(("workers", "run", "work"), [(1, 5, Stages(str, fate)), (3, 1, fate)])
def test_what_an_item_does_to_its_process_costs_that_item(tmp_path, workers, run, work):
    die, once = f"die {tmp_path / 'tally'}", f"die-once {tmp_path / 'once'}"
    words = ["a", "large", die, "b", "hang", once, "c", "large", "d"]
    results = list(ordered(work, in_runs(words, run), workers, timeout=1.5, lost=pair))
    assert [word for word, _ in results] == words
    said = dict(results)
    assert said[die].startswith("killed its decoder") and said["hang"] == "timed out after 1.5 s"
    assert said[once] == "x" and len(said["large"]) == 1 << 20
    assert (tmp_path / "tally").read_text() == "x" * TRIES


def test_a_worker_that_died_is_not_late_as_well(tmp_path: Path) -> None:
    """What it had still to do is the next one's, though the time for it was over long ago."""
    crew = Crew(fate, [[f"die-once {tmp_path / 'once'}"], ["a"]], 1, timeout=1e-9, lost=pair)
    try:
        crew.hand_out(2)
        (dead,) = crew.workers
        dead.process.join()
        crew.listen(patiently=True)
        assert dead.is_ready and dead in crew.workers
        crew.listen(patiently=True)
        assert dead not in crew.workers and not crew.is_busy
        assert [task.items for task in crew.again] == [[f"die-once {tmp_path / 'once'}"], ["a"]]
    finally:
        crew.stop()


@pytest.mark.parametrize("workers", [1, 3])
def test_many_items_come_in_order(workers: int) -> None:
    runs = in_runs(range(0, -500, -1), 500, lambda number: -number)  # ever shorter ones
    assert list(ordered(abs, runs, workers, timeout=9, lost=max)) == [*range(500)]
    assert list(ordered(abs, [], workers, timeout=9, lost=max)) == []


def test_an_error_comes_back_as_it_was_raised() -> None:
    for timeout in (0, 9):
        with pytest.raises(LookupError, match="this"):
            list(ordered(fate, [["a", "fail this", "b"]], 1, timeout=timeout, lost=pair))


def test_results_may_be_left_to_wait() -> None:
    """The time that the reader takes is not the worker's."""
    results = ordered(fate, [["large"], ["large"], ["a"]], 1, timeout=1, lost=pair)
    for seconds in (1.1, 1.1, 0):
        assert not next(results)[1].startswith("timed out")
        time.sleep(seconds)


def process(item: int) -> tuple[int, int]:
    """Which one this is, and how many threads it has."""
    return os.getpid(), len(os.listdir("/proc/self/task"))


def test_a_kept_worker_of_one_thread_does_what_is_next() -> None:
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    with kept():
        assert list(ordered(abs, [[-1], [-2]], 1, timeout=9, lost=max)) == [1, 2]
        (first,) = ordered(process, [[1]], 1, timeout=9, lost=max)
        (again,) = ordered(process, [[1]], 1, timeout=9, lost=max)
        assert first == again == (first[0], 2)  # the other one waits for its parent's end
        dismiss()
        (later,) = ordered(process, [[1]], 1, timeout=9, lost=max)
        assert later[0] != first[0]
    (other,) = ordered(process, [[1]], 1, timeout=9, lost=max)
    assert other[0] not in (first[0], later[0])
    for gone in (first, later):
        with pytest.raises(ProcessLookupError):
            os.kill(gone[0], 0)


def test_ctrl_c_is_kept_from_the_process_that_workers_are_forked_from() -> None:
    """A terminal sends it to that one, too, which would tell where its imports were."""
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    script = """import psutil; from shards.workers import warm_up; warm_up()
found = []
while not found:  # on its way into its program a process has these words, or none
    children = psutil.Process().children()
    found = [c for c in children if "forkserver" + " import" in " ".join(c.cmdline())]
print(open(f"/proc/{found[0].pid}/status").read())"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    (blocked,) = re.findall(r"SigBlk:\s+(\w+)", done.stdout)
    assert int(blocked, 16) & 1 << signal.SIGINT - 1


class StillBorn:
    """Comes apart where it arrives."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (3,)

    def __call__(self, item: int) -> int:
        return item


def test_processes_that_do_not_start_are_not_started_for_ever() -> None:
    with pytest.raises(UserError, match="as it started"):
        list(ordered(StillBorn(), [[1], [2]], 2, timeout=9, lost=max))


class Fragile(Recipe):
    """Cannot bear two of the files."""

    def hear(self, piece: Piece) -> Heard | Reject:
        if piece.path == "low/low-g0-0.wav":
            os.kill(os.getpid(), signal.SIGKILL)
        if piece.path == "high/high-g1-2.wav":
            time.sleep(60)
        return super().hear(piece)


class Careful(Recipe):
    """Rejects those two."""

    def hear(self, piece: Piece) -> Heard | Reject:
        if piece.path == "low/low-g0-0.wav":
            return Reject(piece.path, "killed its decoder (or memory ran out)")
        if piece.path == "high/high-g1-2.wav":
            return Reject(piece.path, "timed out after 2 s")
        return super().hear(piece)


@pytest.mark.slow
def test_a_file_that_kills_its_decoder_changes_no_byte_of_the_others(small, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "Recipe", Careful)
    build_tones(small, tmp_path / "careful", folds=2, file_timeout=0)
    monkeypatch.setattr(plan_module, "Recipe", Fragile)
    for workers in (1, 2):
        out = tmp_path / f"fragile-{workers}"
        said = build_tones(small, out, folds=2, workers=workers, file_timeout=2)
        assert "rejected    2" in said
        assert hashes(out) == hashes(tmp_path / "careful")
    assert len((out / "rejected.csv").read_text().splitlines()) == 3


class Deadly(type(Path())):  # type: ignore[misc]
    """A folder in which reading a header can end its process, or take long."""

    def __truediv__(self, name: str) -> Path:
        if multiprocessing.parent_process() is not None:
            if "kills" in str(name):
                os.kill(os.getpid(), signal.SIGKILL)
            if "hangs" in str(name):
                time.sleep(60)
        return Path(str(self)) / name


def test_a_header_that_kills_its_reader_costs_that_file(small: Path) -> None:
    there = scan(small).recordings
    label = there[0].label
    for name in ("kills.wav", "hangs.wav"):
        shutil.copy(small / there[0].path, small / label / name)
    found = scan(Deadly(small), file_timeout=2.0)
    assert found.recordings == there
    assert {(r.path, r.reason) for r in found.rejected} == {
        (f"{label}/kills.wav", "killed its decoder (or memory ran out)"),
        (f"{label}/hangs.wav", "timed out after 2 s"),
    }


def test_a_worker_takes_less_than_500_mb_for_an_hour(tmp_path: Path) -> None:
    """Of stereo at 44.1 kHz: 635 MB in the file, all but its first second a hole."""
    if sys.platform != "linux":
        pytest.skip("VmHWM is Linux's")
    second = np.random.default_rng(0).integers(-9999, 9999, 2 * 44100).astype("<i2").tobytes()
    with open(tmp_path / "hour.wav", "wb") as out:
        out.write(riff(second, rate=44100, channels=2, claimed=3600 * len(second)))
        out.truncate(44 + 3600 * len(second))
    recipe = Recipe(
        audio=tmp_path,
        mel=MelSettings(),
        conditioning=Conditioning(sample_rate=16000),
        length=80000,
        hop=40000,
    )
    worker = Worker(recipe.extract)
    assert receive(worker.connection) is None
    worker.give(Task(0, 0, [Piece("hour.wav")]))
    (features,), error, _ = receive(worker.connection)
    told = Path(f"/proc/{worker.process.pid}/status").read_text()
    worker.stop()
    assert error is None and len(features.starts) == 1439
    peak = re.search(r"VmHWM:\s+(\d+) kB", told)
    assert peak and int(peak[1]) * 1024 < 500e6


def test_a_worker_is_no_larger_where_loops_had_to_be_compiled(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("VmHWM is Linux's")
    script = """from shards.crew import Worker; from shards.process import receive
worker = Worker(abs); receive(worker.connection)
print(open(f"/proc/{worker.process.pid}/status").read()); worker.stop()"""
    peaks = []
    for _ in range(2):  # the second one finds them compiled
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        words = [sys.executable, "-c", script]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]))
        assert done.stderr == "" and list(tmp_path.rglob("*.nbc"))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.1)  # three times as much before


def test_a_worker_loads_no_library_that_it_does_not_need() -> None:
    heavy = ["torch", "librosa", "sklearn", "matplotlib", "scipy.signal", "av", "pyloudnorm"]
    script = f"import {', '.join(PRELOAD)}, sys; sys.exit(str(sys.modules.keys() & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
