"""One training at a time in a run's folder: who may take it, from whom, and when it ends."""

import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import runs
import yaml
from processes import forked, on_ranks

from shards.errors import TrainingError, UserError
from toolkit import forest, lock
from toolkit.config import parse
from toolkit.lock import NAME, Lock
from toolkit.loop import fit
from toolkit.owner import this_process

pytestmark = pytest.mark.usefixtures("no_pictures")

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "DYING", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.02)


def elsewhere(folder, silence=0.0, **values):
    """The lock of a process on another machine, quiet for `silence` seconds."""
    owner = this_process() | {"machine": "n9 boot", "host": "n9", "token": "theirs"} | values
    (folder / NAME).write_text(json.dumps(owner))
    then = time.time() - silence
    os.utime(folder / NAME, (then, then))


def token(folder):
    return json.loads((folder / NAME).read_text())["token"]


def test_a_live_training_is_left_alone(tmp_path):
    ready = FORK.Event()

    def holder():
        Lock(tmp_path).take()
        ready.set()
        time.sleep(60)

    process = FORK.Process(target=holder, daemon=True)
    process.start()
    assert ready.wait(10)
    theirs = token(tmp_path)
    with pytest.raises(UserError, match=rf"being trained by process {process.pid} on .*stop it"):
        Lock(tmp_path).take()
    assert token(tmp_path) == theirs
    os.kill(process.pid, signal.SIGKILL)  # and nobody has waited for it: a zombie
    lock.BEAT = 1000.0  # whoever waits for a sign of life does not come back
    mine = Lock(tmp_path)
    mine.take()
    assert token(tmp_path) == mine.me["token"] != theirs
    mine.give_back()
    assert not tmp_path.exists()
    process.join(10)


@pytest.mark.parametrize(
    "silence, values, here, taken",
    [
        (0, {"job": "7_1", "life": 0}, {"job": "7_1", "life": 1}, "started its job again"),
        (0, {"job": "7_1", "life": 1}, {"job": "7_1", "life": 1}, None),
        (0, {"job": "8"}, {"job": "7_1"}, "runs its job no more"),
        (0, {"job": "9"}, {"job": "7_1"}, None),
        (0, {"job": "8", "cluster": "other"}, {"job": "7_1"}, None),
        (260, {}, {}, None),
        (301, {}, {}, "no sign of life for 3"),
    ],
)
def test_who_has_gone(tmp_path, monkeypatch, caplog, silence, values, here, taken):
    stub = tmp_path / "bin" / "squeue"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\n[ "$3" = --jobs=9 ] && echo RUNNING && exit 0\n'
                    '[ "$3" = --jobs=8 ] && echo "slurm_load_jobs error: Invalid job id" >&2\n'
                    "exit 1\n")  # fmt: skip
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    run = tmp_path / "run"
    run.mkdir()
    elsewhere(run, silence, **values)
    mine = Lock(run)
    mine.me |= here
    caplog.set_level("INFO")
    if taken:
        mine.take()
        assert token(run) == mine.me["token"] and taken in caplog.text
        mine.give_back()
    else:
        with pytest.raises(UserError, match=r"on n9.*it is \d+ s") as error:
            mine.take()
        found = int(re.search(r"it is (\d+) s", str(error.value))[1])
        assert silence <= found < silence + 30  # of a loaded machine
        assert token(run) == "theirs"
    assert not run.exists() or [file.name for file in run.iterdir()] == [NAME]


def test_of_many_that_find_a_dead_owner_one_gets_it(tmp_path):
    elsewhere(tmp_path, silence=9999)
    gate, won = FORK.Barrier(8), FORK.Queue()

    def start():
        mine = Lock(tmp_path)
        gate.wait(20)
        try:
            mine.take()
            won.put(mine.me["token"])
        except UserError:
            won.put(None)
        gate.wait(20)  # the winner lives until all have asked

    processes = [FORK.Process(target=start, daemon=True) for _ in range(8)]
    for process in processes:
        process.start()
    found = [won.get(timeout=30) for _ in processes]
    assert len([one for one in found if one]) == 1 and token(tmp_path) in found
    for process in processes:
        process.join(10)


def test_whoever_lost_it_ends_and_whoever_deleted_it_did_nothing(tmp_path):
    def lose():
        mine = Lock(tmp_path)
        mine.take()
        (tmp_path / NAME).unlink()
        while not (tmp_path / NAME).exists():
            time.sleep(0.01)
        elsewhere(tmp_path)
        with pytest.raises(TrainingError, match="taken over by process"):
            mine.check()
        time.sleep(60)

    process = FORK.Process(target=lose)
    process.start()
    process.join(20)
    assert process.exitcode == 1 and token(tmp_path) == "theirs"


@pytest.fixture
def values(tone_set, tmp_path):
    return runs.values(tone_set, tmp_path / "runs", train={"epochs": 1, "max_steps": 2})


def test_all_ranks_leave_alike_where_another_trains(values):
    config = parse(values)
    config.folder().mkdir(parents=True)
    elsewhere(config.folder())
    one, two = on_ranks(2, lambda: fit(config))
    assert one == two and "is being trained by process" in one and "n9" in one
    assert [file.name for file in config.folder().iterdir()] == [NAME]


def test_a_forest_is_left_alone_too(values):
    config = parse(values | {"model": {"name": "forest"}})
    config.folder().mkdir(parents=True)
    elsewhere(config.folder())
    with pytest.raises(UserError, match=r"is being trained by process .* on n9"):
        forest.fit(config)
    assert [file.name for file in config.folder().iterdir()] == [NAME]


def test_every_end_gives_it_back(values, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(values))
    folder = parse(values).folder()
    code, said = forked(str(file), "--data.shards=nowhere")
    assert code == 2 and "nowhere" in said and not Path(values["run"]["dir"]).exists()
    assert forked(str(file))[0] == 0 and (folder / "scores.json").exists()
    assert not (folder / NAME).exists()
    code, said = forked(str(file), "--optim.lr=1e-9", "--data.fold=1", "--data.shards=nowhere")
    assert code == 2 and "fold-0 holds a run with other settings (optim.lr: 0.001 there" in said
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("  part: ''\n", "")
    )  # of a version that knew no such key
    code, said = forked(str(file))
    assert code == 0 and "is finished" in said and not (folder / NAME).exists()
