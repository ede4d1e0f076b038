"""slurm/job.sh by itself: who starts again after what, and that signals arrive."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import ROOT

HEAD = f"code={ROOT} python=python3 container=() max_restarts=3\n. {ROOT}/slurm/job.sh\nrun=run\n"
SLURM = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}


def bash(
    folder: Path, text: str, preempted: str = "None", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run lines below job.sh; `scontrol` notes what it is asked and knows of a preemption."""
    (folder / "bin").mkdir(exist_ok=True)
    fake = folder / "bin/scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{folder}/asked\necho PreemptTime={preempted}\n')
    fake.chmod(0o755)
    path = f"{folder}/bin:{os.environ['PATH']}"
    env = {"PATH": path, "SLURMD_NODENAME": "n1", **SLURM, **variables}
    return subprocess.run(
        ["bash", "-c", HEAD + text], env=env, cwd=folder, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    "told, status, marker, preempted, restarts, requeued",
    [
        ("", 0, False, "None", 0, False),  # finished
        ("", 1, False, "None", 0, False),  # crashed
        ("", 2, True, "None", 0, False),  # a marker of whom nobody here has told
        ("USR1", 75, True, "None", 0, True),  # the limit is near
        ("USR1", 1, True, "None", 2, True),  # behind a launcher that returns 1
        ("USR1", 138, False, "None", 0, True),  # before training could listen
        ("USR1", 1, False, "None", 0, False),  # a crash at that moment
        ("USR1", 0, False, "None", 0, False),  # finished just then
        ("USR1", 75, True, "None", 3, False),  # too often
        ("TERM", 75, True, "None", 0, False),  # scancel is final
        ("TERM", 75, True, "2026-01-31T12:00:00", 0, False),  # Slurm's own
        ("", 75, True, "2026-01-31T12:00:00", 0, True),  # preemption's grace
    ],
)
def test_how_a_life_ends(
    tmp_path: Path, told: str, status: int, marker: bool, preempted: str, restarts: int,
    requeued: bool,
) -> None:  # fmt: skip
    (tmp_path / "run").mkdir()
    if marker:
        (tmp_path / "run/requeue").touch()
    text = f"signal={told} status={status}; end_life"
    done = bash(tmp_path, text, preempted, SLURM_RESTART_COUNT=str(restarts))
    asked = tmp_path / "asked"
    assert ("requeue 7_2" in (asked.read_text() if asked.exists() else "")) == requeued
    expected = 75 if requeued else 1 if restarts == 3 else status
    assert done.returncode == expected, done.stdout + done.stderr
    assert ("3 restarts, max_restarts=3" in done.stdout) == (restarts == 3)


@pytest.mark.parametrize("status", [138, 143, 1])
def test_a_signal_as_a_training_leaves_requeues_nothing(tmp_path: Path, status: int) -> None:
    """Scores of before this life are none of its own."""
    (tmp_path / "run").mkdir()
    scores, text = tmp_path / "run/scores.json", f"signal=USR1 status={status}; end_life"
    for then, code in ((0, 75 if status == 138 else status), (2e9, 0)):
        (tmp_path / "run/lives.txt").touch()
        scores.touch()
        os.utime(scores, (then, then))
        assert bash(tmp_path, text).returncode == code
    assert (tmp_path / "asked").exists() == (status == 138)


def test_a_task_that_makes_no_progress_in_two_lives_is_stopped(tmp_path: Path) -> None:
    def begin(**variables: str) -> subprocess.CompletedProcess[str]:
        return bash(tmp_path, "begin_life; echo trains", **variables)

    def checkpoint(step: int) -> None:
        (tmp_path / f"run/checkpoints/step-{step:08}").mkdir(parents=True)

    assert "trains" in begin().stdout and "trains" in begin().stdout
    stopped = begin()
    assert stopped.returncode == 1 and "two lives made no checkpoint after none" in stopped.stdout
    assert "trains" in begin(SLURM_ARRAY_TASK_ID="1").stdout  # another task, or a new submission
    checkpoint(5)
    assert "begins at step-00000005" in begin().stdout and "trains" in begin().stdout
    checkpoint(10)
    assert "trains" in begin().stdout and "trains" in begin().stdout
    assert "no checkpoint after step-00000010" in begin().stdout


def test_a_task_that_slurm_restarts_for_ever_is_stopped(tmp_path: Path) -> None:
    done = bash(tmp_path, "begin_life; echo trains", SLURM_RESTART_COUNT="4")
    assert done.returncode == 1 and "4 restarts, max_restarts=3" in done.stdout
    assert "trains" not in done.stdout


def test_a_plain_job_is_named_by_its_own_id(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = bash(tmp_path, "requeue why", SLURM_ARRAY_JOB_ID="", SLURM_ARRAY_TASK_ID="")
    assert done.returncode == 75 and (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_child_and_its_own_status_counts(tmp_path: Path, number: int) -> None:
    """Each interrupts bash's `wait`; the child takes its time, and ends as it wants."""
    (tmp_path / "child.sh").write_text(
        "told=0\ntrap 'told=$((told + 1)); touch told-$told' USR1 TERM\ntouch told-0\n"
        "while [ $told -lt 2 ]; do sleep 0.05; done\nsleep 0.3\nexit 42\n"
    )
    text = HEAD + 'supervise bash child.sh\necho "$status $signal"\n'
    env = {**os.environ, "SLURMD_NODENAME": "n1", **SLURM}
    shell = subprocess.Popen(
        ["bash", "-c", text], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    for told in range(3):
        while not (tmp_path / f"told-{told}").exists():
            time.sleep(0.02)
        if told < 2:
            shell.send_signal(number)
    said, _ = shell.communicate(timeout=30)
    assert said.split() == ["42", signal.Signals(number).name.removeprefix("SIG")]
