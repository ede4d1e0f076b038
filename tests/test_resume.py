"""The same bytes whatever stopped a build, and however many processes did it."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    SETTINGS,
    build_tones,
    hashes,
)

from shards import output as output_module
from shards import workers as workers_module
from shards import write as write_module
from shards.errors import UserError
from shards.index import open_set
from shards.output import locked
from shards.plan import Plan
from shards.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("workers", [2, 4])
def test_more_workers_write_the_bytes_of_one(tones, tone_set, tmp_path, workers):
    build_tones(tones, tmp_path / "set", split="0.6,0.2,0.2", workers=workers)
    assert hashes(tmp_path / "set") == hashes(tone_set)


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from shards import write
from shards.build import build

finish, out = write.Tar.finish, Path(sys.argv[2])

def finish_or_die(tar):
    if len(list(out.glob("samples-*.tar"))) == 1:
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    finish(tar)

write.Tar.finish = finish_or_die
build(sys.argv[1], str(out), **eval(sys.argv[3]))
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_build_goes_on_and_ends_in_the_same_bytes(tones, tone_set, tmp_path, monkeypatch):
    out = tmp_path / "set"
    words = {"folds": 4, "split": "0.6,0.2,0.2", "shard_size": "100KB"} | SETTINGS
    script = [sys.executable, "-c", KILLED, str(tones), str(out), repr(words | {"workers": 2})]
    killed = subprocess.run(script, cwd=ROOT, stdout=subprocess.PIPE, timeout=60)
    assert killed.returncode == -9
    assert [f.name for f in out.iterdir() if not f.name.startswith(".")] == ["samples-000000.tar"]
    orphans = [int(pid) for pid in killed.stdout.split()]
    deadline = time.monotonic() + 10
    while not all(map(is_gone, orphans)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert orphans and all(map(is_gone, orphans))

    with pytest.raises(UserError, match=r"n_mels: 32 there, 16 asked"):
        build_tones(tones, out, **words | {"n_mels": 16})
    with pytest.raises(UserError, match="unfinished build"):
        open_set(out)
    first, decoded = (out / "samples-000000.tar").stat().st_ino, []
    heard = Recipe.heard
    monkeypatch.setattr(Recipe, "heard", lambda *words: decoded.append(words[-1]) or heard(*words))
    build_tones(tones, out, **words, file_timeout=0)  # all in this process
    assert hashes(out) == hashes(tone_set)
    assert (out / "samples-000000.tar").stat().st_ino == first
    kept = (np.load(out / "index.npy")["shard"] == 0).sum()
    assert 0 < len(decoded) < 36 and kept > 0


def test_full_disk(tones, tone_set, small_disk, capsys):
    from shards.__main__ import main

    out = small_disk / "set"
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    flags += ["--folds=4", "--split=0.6,0.2,0.2", "--workers=1", "--shard_size=100KB"]
    words = ["build", str(tones), str(out), *flags]
    assert main(words) == 1
    assert capsys.readouterr().err.count("\n") == 1
    written = [f.name for f in out.iterdir() if not f.name.startswith(".")]
    assert written and all((out / n).read_bytes() == (tone_set / n).read_bytes() for n in written)
    assert not list(out.glob(".build/*.part"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert main(words) == 0
    assert hashes(out) == hashes(tone_set)


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_space_leaves_whole_shards_only(tones, tone_set, tmp_path, monkeypatch, overwrite):
    words = {"split": "0.6,0.2,0.2", "overwrite": overwrite}
    out, put = tmp_path / "set", write_module.Tar.put

    def put_until_full(tar: write_module.Tar, data: bytes) -> None:
        if tar.size > 40_000 and (out / "samples-000000.tar").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        put(tar, data)

    with monkeypatch.context() as patch:
        patch.setattr(write_module.Tar, "put", put_until_full)
        with pytest.raises(OSError) as error:
            build_tones(tones, out, **words)
    assert error.value.filename == str(out)
    first = (out / "samples-000000.tar").stat().st_mtime_ns
    names = sorted(f.name for f in out.rglob("*"))
    assert names == [".build", "plan.json", "samples-000000.npz", "samples-000000.tar"]
    build_tones(tones, out, **words)
    assert hashes(out) == hashes(tone_set)
    assert (out / "samples-000000.tar").stat().st_mtime_ns == first  # it went on


def test_second_start_touches_nothing(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert "complete already" not in build_tones(small, out, folds=2)
    before = {f.name: (f.stat().st_mtime_ns, f.stat().st_ino) for f in out.iterdir()}
    assert "complete already" in build_tones(small, out, folds=2)
    assert {f.name: (f.stat().st_mtime_ns, f.stat().st_ino) for f in out.iterdir()} == before


def test_an_overwrite_that_is_stopped_leaves_nothing_of_the_old_set(small, tmp_path, monkeypatch):
    out, fresh, unlink = tmp_path / "set", tmp_path / "fresh", os.unlink
    build_tones(small, fresh, folds=2, shard_size="1MB", fmin=9.0)
    for stop in (1, 3, 8):
        build_tones(small, out, folds=2, shard_size="10KB", overwrite=stop > 1)
        left = iter(range(stop))

        def stopped(path: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            unlink(path)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(output_module.os, "unlink", stopped)
            build_tones(small, out, folds=2, shard_size="1MB", fmin=9.0, overwrite=True)
        build_tones(small, out, folds=2, shard_size="1MB", fmin=9.0)
        assert hashes(out) == hashes(fresh)


def interrupted(plan: Plan) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff"])
def test_damaged_notes_are_made_again_and_a_damaged_plan_is_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    out, whole = tmp_path / "set", tmp_path / "whole"
    build_tones(small, whole, folds=2)
    monkeypatch.setattr("shards.build.finish", interrupted)
    for file in ("plan.json", "samples-000000.npz"):
        with pytest.raises(KeyboardInterrupt):
            build_tones(small, out, folds=2)
        (out / ".build" / file).write_bytes(damage)
        if file == "plan.json":
            with pytest.raises(UserError, match=r"\.build/plan\.json: n.* --overwrite"):
                build_tones(small, out, folds=2)
            with pytest.raises(KeyboardInterrupt):
                build_tones(small, out, folds=2, overwrite=True)
    monkeypatch.undo()
    build_tones(small, out, folds=2)
    assert hashes(out) == hashes(whole)


def test_one_build_at_a_time(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    monkeypatch.setattr("shards.build.make_plan", None)  # it is told before a header is read
    with locked(out), pytest.raises(UserError, match="another build"):
        build_tones(small, out, folds=2)


def test_work_is_begun_a_little_ahead_only() -> None:
    taken: list[int] = []
    runs = ([taken.append(n) or n] for n in range(1000))
    results = workers_module.ordered(abs, runs, 2, timeout=0, lost=max)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 2 * workers_module.AHEAD
    results.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_build_killed_at_random_instants(tones: Path) -> None:
    flags = ["--n=1", "--shard_size=30KB", *(f"--{k}={v}" for k, v in SETTINGS.items())]
    done = subprocess.run(
        [sys.executable, "bench/kills.py", str(tones), *flags],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    row = [cell.strip() for cell in done.stdout.partition("---|\n")[2].splitlines()[0].split("|")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert row[4] == row[7] == row[8] == "1" and int(row[5]) >= 1
