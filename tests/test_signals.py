"""A training that is asked to stop: checkpoint, marker, exit code 75, and nothing left running."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from processes import ROOT, environment, on_ranks, train_command
from runs import configured, records

from shards.durable import sha256
from toolkit import loop, signals
from toolkit.checkpoint import checkpoints, damage, step_of

pytestmark = pytest.mark.usefixtures("no_pictures")


def make_config(tone_set, runs, **train):
    train = {"epochs": 3, "log_every": 1} | train
    return configured(tone_set, runs, model={"dropout": 0.1}, optim={"ema": 0.9}, train=train)


def stopped(config, at, number, rank):
    """Train, `rank` getting the signal twice before step `at` (from 1); how the process ended."""
    rate = loop.learning_rate

    def with_signal(optim, step, *words):
        if step + 1 == at and os.environ.get("RANK", "0") == str(rank):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return rate(optim, step, *words)

    loop.learning_rate = with_signal
    try:
        with signals.noted():
            loop.fit(config)
    except SystemExit as end:
        return end.code
    return None


def ended(run):
    """What a training ended in: its weights, and the losses of its steps."""
    steps = [(line["step"], line["loss"]) for line in records(run, "train")]
    return sha256(run / "best.safetensors"), steps


def test_a_signal_is_noted_and_interrupts_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with signals.noted():
        assert signals.received() == 0
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signals.received() == signal.SIGTERM
    assert signals.received() == 0 and signal.getsignal(signal.SIGTERM) is before


def test_stopped_twice_it_ends_as_if_it_never_was(tone_set, tmp_path):
    """Inside an epoch, and after the last step of all, before anything is scored."""
    whole, config = (make_config(tone_set, tmp_path / name) for name in ("whole", "stopped"))
    on_ranks(1, lambda: loop.fit(whole))
    run, last = config.folder(), ended(whole.folder())[1][-1][0]
    for at, number in ((5, signal.SIGUSR1), (last, signal.SIGTERM)):
        assert on_ranks(1, lambda at=at, n=number: stopped(config, at, n, 0)) == [75]
        marker = json.loads((run / "requeue").read_text())
        assert marker["step"] == at == records(run)[-1]["step"]
        assert (marker["signal"], marker["host"]) == (number.name, platform.node())
        assert abs(time.time() - time.mktime(time.strptime(marker["time"], "%Y-%m-%dT%H:%M:%SZ"))
                   + time.timezone) < 60  # fmt: skip
        newest = checkpoints(run / "checkpoints")[-1]
        assert step_of(newest) == at and not damage(newest)
        assert not (run / "scores.json").exists()
    on_ranks(1, lambda: loop.fit(config))
    assert (run / "scores.json").exists() and not (run / "requeue").exists()
    assert ended(run) == ended(whole.folder())


def test_all_ranks_obey_what_one_of_them_was_told(tone_set, tmp_path):
    config = make_config(tone_set, tmp_path)
    assert on_ranks(2, lambda: stopped(config, 5, signal.SIGUSR1, rank=1)) == [75, 75]
    assert json.loads((config.folder() / "requeue").read_text())["step"] == 5


@pytest.fixture
def long(tone_set, tmp_path):
    """A training that does not end by itself, as a file; its run."""
    config, file = make_config(tone_set, tmp_path, epochs=9999), tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    return str(file), config.folder()


ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
ACCELERATE += [f"--config_file={ROOT}/launch/cpu.yaml", str(ROOT / "train.py")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, processes, told, number, code",
    [
        (train_command(1), 1, "worker", signal.SIGTERM, 75),
        (ACCELERATE, 1, "launcher", signal.SIGUSR1, -signal.SIGUSR1),  # dies of it
        (train_command(2), 2, "launcher", signal.SIGTERM, 1),
        (train_command(2), 2, "worker", signal.SIGUSR1, 1),
    ],
)
def test_whoever_is_told_there_is_a_checkpoint_and_a_marker_and_nothing_is_left_running(
    long, command, processes, told, number, code
):
    """Launchers hide the exit code of their workers."""
    config, run = long
    words = [*command, config]
    launcher = psutil.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or len(records(run)) < 5:
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.05)
    all_of_it = [launcher, *launcher.children(recursive=True)]
    workers = [p for p in all_of_it if any(word.endswith("train.py") for word in p.cmdline()[:3])]
    assert len(workers) == processes
    (workers[-1] if told == "worker" else launcher).send_signal(number)
    launcher.communicate(timeout=60)
    assert launcher.returncode == code and not psutil.wait_procs(all_of_it, timeout=30)[1]
    newest, marker = checkpoints(run / "checkpoints")[-1], json.loads((run / "requeue").read_text())
    assert marker["step"] == step_of(newest) == records(run)[-1]["step"] and not damage(newest)


@pytest.mark.parametrize("words", [["-m", "shards", "info", "x"], ["train.py", "x.yaml"]])
def test_ctrl_c_while_modules_load_is_one_line(words, tmp_path):
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (130, "interrupted; start again to go on\n")
