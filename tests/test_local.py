"""Trainings side by side on one machine: a stand-in for train.py shows who runs when and how often;
the real one, that side by side changes nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import PLAIN, ROOT, environment, forked
from runs import config_file

from launch import job, local

TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1]).parent
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
def note(kind):
    with open(os.environ["NOTES"], "a") as out:
        out.write(json.dumps([kind, folder.name, os.environ.get("CUDA_VISIBLE_DEVICES"),
                              sys.argv[2:]]) + "\\n")
note("start")
if folder.name == "fold-0":
    (folder / "environment.json").write_text("{}")
lives = folder / "lives"
life = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (life + 1))
code = json.loads(os.environ["CODES"]).get(folder.name, [0])[life]
if code == "wait":
    while not told:
        time.sleep(0.01)
    (folder / "requeue").write_text("{}")
    code = 75
time.sleep(0.05)
print("Traceback", "KeyError: 'bass'" if code == 1 else "", "error: no such words" * (code == 2),
      sep="\\n")
note("end")
sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)
"""


@pytest.fixture
def config(tone_set, tmp_path):
    return config_file(tmp_path, tone_set, model={"dropout": 0.1}, train={"epochs": 2})


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Start with exit codes by fold and life; returns the code, what trained, what was collected"""
    program, notes, collected = tmp_path / "stand_in.py", tmp_path / "notes", []
    program.write_text(TRAINER)
    monkeypatch.setattr(job, "PROGRAM", program)
    monkeypatch.setattr(local, "LOOK", 0.02)
    monkeypatch.setattr("toolkit.__main__.collect", collected.append)
    monkeypatch.setenv("NOTES", str(notes))

    def run(codes, *words):
        monkeypatch.setenv("CODES", json.dumps(codes))
        notes.write_text("")
        code = local.main(list(words))
        return code, [json.loads(line) for line in notes.read_text().splitlines()], collected

    return run


def test_what_starts_over_does_so_once(stand_in, config, monkeypatch, capfd):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    code, notes, _ = stand_in(
        {"fold-0": [75, 1, 0], "fold-1": [75, 0]}, config, "--folds=2", "--train.resume=never"
    )
    starts = [(name, rest) for kind, name, _, rest in notes if kind == "start"]
    assert code == 0
    goes_on = ("fold-0", ["--train.resume=auto"])
    assert starts == [("fold-0", []), goes_on, goes_on, ("fold-1", []), ("fold-1", [])]
    assert "2 trainings, 1 at a time, 1 CPU thread(s) each" in capfd.readouterr().err


def most_at_once(notes):
    now = most = 0
    for kind, *_ in notes:
        now += 1 if kind == "start" else -1
        most = max(most, now)
    return most


def test_crashes_once_more_and_what_failed_is_named(stand_in, config, tmp_path, capfd):
    codes = {"fold-0": [-9, 0], "fold-1": [1, 1, 0], "fold-2": [2, 0], "fold-3": [75, 75, 75, 0]}
    code, notes, collected = stand_in(codes, config, "--folds=4", "--jobs=2")
    starts = [name for kind, name, *_ in notes if kind == "start"]
    assert [starts.count(f"fold-{fold}") for fold in range(4)] == [2, 2, 1, 4]
    assert code == 1 and collected == [str(tmp_path / "runs/tones")]
    said = capfd.readouterr().err
    assert "error: 2 of 4 trainings failed: fold-1 (exit code 1: KeyError: 'bass'); " \
           "fold-2 (exit code 2: no such words)" in said  # fmt: skip
    assert "fold-0  killed by SIGKILL" in said and "fold-3  done" in said
    assert (tmp_path / "runs/tones/fold-1/train.log").read_text().count("Traceback") == 2


@pytest.mark.parametrize(
    "words, most, gpus",
    [
        ([], 1, {None}),
        (["--jobs=3"], 3, {None}),
        (["--gpus=0,5"], 2, {"0", "5"}),
        (["--gpus=1", "--per_gpu=2"], 2, {"1"}),
        (["--gpus=0,1", "--jobs=1"], 1, {"0"}),
    ],
)
def test_as_many_at_a_time_as_there_are_places(stand_in, config, monkeypatch, words, most, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, notes, _ = stand_in({}, config, "--folds=4", "--train.threads=null", *words)
    assert code == 0 and most_at_once(notes) <= most
    assert {gpu or None for _, _, gpu, _ in notes} == gpus
    cores = len(os.sched_getaffinity(0))
    assert {tuple(rest) for *_, rest in notes} == {(f"--train.threads={max(1, cores // most)}",)}


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 75), (signal.SIGTERM, 75)])
def test_a_signal_stops_all_and_starts_none(stand_in, config, tmp_path, number, code):
    def interrupt():
        while sum(1 for _ in (tmp_path / "notes").open()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    (tmp_path / "notes").write_text("")
    thread.start()
    with pytest.raises(SystemExit) as end:
        stand_in({f"fold-{n}": ["wait", 0] for n in range(4)}, config, "--folds=4", "--jobs=2")
    thread.join()
    assert end.value.code == code
    notes = [json.loads(line)[:2] for line in (tmp_path / "notes").read_text().splitlines()]
    assert sorted(notes) == [[kind, f"fold-{n}"] for kind in ("end", "start") for n in (0, 1)]
    codes = {"fold-0": [0, 0], "fold-1": [0, 1, 1]}  # a mark of the stop makes no crash a stop
    assert stand_in(codes, config, "--folds=2")[0] == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--folds=5"], "data.fold=4"),
        (["--folds=2", "--grid=model.name=crnn,crn"], "model.name=crn: unknown"),
        (["--folds=2", "--jobs=0"], "--jobs=0: at least 1"),
        (["--folds=2", "--gpus=0,0"], "--gpus=0,0: numbers, each once"),
        (["--folds=2", "--gpus=0", "--jobs=2"], "raise --per_gpu"),
        (["--folds=2", "--per_gpu=2"], "there is no GPU; use --jobs=2"),
        (["--folds=2", "--job=2"], "did you mean jobs"),
    ],
)
def test_words_that_are_off_start_nothing(
    stand_in, config, tmp_path, monkeypatch, capfd, words, message
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, notes, _ = stand_in({}, config, *words)
    assert code == 2 and notes == [] and not (tmp_path / "runs").exists()
    assert message in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_side_by_side_is_one_after_another(config, tmp_path):
    words = [sys.executable, "-m", "launch.local", config, "--folds=0,2", "--jobs=2"]
    env = environment() | {"PYTHONPATH": f"{PLAIN}:{ROOT}"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 folds missing: 2, 4" in done.stdout
    for fold in (0, 2):
        code, said = forked(config, f"--data.fold={fold}", "--run.name=alone")
        assert code == 0, said
        one, two = (
            hashlib.sha256((tmp_path / "runs" / name / f"fold-{fold}" / "best.safetensors")
                           .read_bytes()).hexdigest() for name in ("tones", "alone")
        )  # fmt: skip
        assert one == two
