"""What ends a task on a real Slurm: limits, signals, preemption, dead nodes, and a cancellation.

Whatever it was, the task ends in the weights of one that nobody touched.
"""

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cluster import until
from submitted import DIR, MARKS, Runs, Told, lives, submitted, telling, weights

from toolkit import checkpoint

pytestmark = MARKS
EPOCHS = 24  #: between its first checkpoint and its end a busy machine can deliver a signal
SAME = "train.log_every"  #: settings of it differ, and train the same


def signalled(runs: Runs) -> dict[str, str]:
    """Of three tasks the last gets USR1, the first is requeued, the second left alone."""
    ids = runs.submit("signalled", "--folds=0,", f"--grid={SAME}=1,2,3")
    with ThreadPoolExecutor(3) as pool:
        trainers = list(pool.map(runs.begun, [task(runs, n) for n in range(3)]))
    runs.cluster.run("scancel", "--signal=USR1", "--batch", f"{ids['train']}_2")
    runs.cluster.run("scontrol", "requeue", f"{ids['train']}_0")
    trainers[1].resume()
    resume(trainers[2], 20)
    assert runs.cluster.wait(ids["train"], 600) == {"COMPLETED"}
    return ids


def resume(trainer: psutil.Process, seconds: float) -> None:
    """Let a training that is suspended meet the USR1 that is to come."""
    status = Path(f"/proc/{trainer.pid}/status")

    def waiting() -> bool:
        pending = re.findall(r"(?:Sig|Shd)Pnd:\s+(\w+)", status.read_text())
        return any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in pending)

    until(waiting, seconds, "USR1")
    trainer.resume()


def task(runs: Runs, number: int) -> Path:
    return runs.run("signalled") / f"log_every={number + 1}/fold-0"


def limited(runs: Runs) -> dict[str, str]:
    """A limit of three minutes strikes."""
    ids = runs.submit("limited", "--folds=0,", time=3, signal=60)
    resume(runs.begun(runs.fold("limited")), 180)
    assert runs.cluster.wait(ids["train"], 600) == {"COMPLETED"}
    return ids


def preempted(runs: Runs) -> dict[str, str]:
    """In a container, as it were, from which no scontrol can be reached."""
    own = ["--container=env PATH=/nowhere MARK=inside", f"--python={sys.executable}"]
    own += ["--env=OUTER=set", "--activate=unset SLURM_JOB_NAME", "--track.wandb=offline"]
    ids = runs.submit("preempted", "--folds=0,", "--sbatch=--nodelist=n3", *own)
    trainer = runs.begun(runs.fold("preempted"))
    assert trainer in runs.cluster.processes(MARK="inside", OUTER="set")
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-w", "n3", "--exclusive", "-o", "/dev/null"]
    job = runs.cluster.run(*urgent, "--wrap", "sleep 1").strip()
    assert runs.cluster.wait(job) == {"COMPLETED"}
    assert runs.cluster.wait(ids["train"], 600) == {"COMPLETED"}
    return ids


def died(runs: Runs) -> dict[str, str]:
    """A node dies, its daemon first, that nobody tell of it."""
    ids = runs.submit("died", "--folds=0,", "--sbatch=--exclude=n1,n2,n3")
    runs.begun(runs.fold("died"))
    (node,) = {life[2] for life in lives(runs.fold("died"))}
    runs.cluster.daemons[f"slurmd-{node}"].kill()
    runs.cluster.daemons[f"slurmd-{node}"].wait()
    job = runs.cluster.processes(SLURMD_NODENAME=node)
    ours, title = runs.cluster.processes(), f"[{ids['train']}."
    titled = psutil.process_iter(["cmdline"])  # a zombie's is None
    daemons = [p for p in titled if title in " ".join(p.info["cmdline"] or ()) and p in ours]
    for process in daemons + job:  # the steps' daemons would tell
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert runs.cluster.wait(ids["train"], 600) == {"COMPLETED"}
    return ids


def cancelled(runs: Runs) -> str:
    """Ended by `launch.cancel`; what `launch.status` showed before."""
    words = ["--folds=0,", "--train.epochs=9999"]
    ids, run = runs.submit("cancelled", *words), f"{DIR}/cancelled"
    trainer = runs.begun(runs.fold("cancelled"))
    shown = runs.command("status", run)
    twice = runs.submit("cancelled", *words)["train"]
    assert runs.cluster.wait(twice) == {"FAILED"}
    log = runs.run("cancelled") / f"logs/train-{twice}_0.log"
    assert "fold-0 is being trained by process" in log.read_text()
    assert trainer in runs.cluster.processes(SLURM_JOB_ID=ids["train"])
    assert ids["train"] in runs.command("cancel", run)
    assert runs.cluster.wait(ids["train"]) == {"CANCELLED"}
    assert runs.cluster.wait(ids["collect"]) == {"CANCELLED"}
    until(lambda: not runs.cluster.processes(SLURM_JOB_ID=ids["train"]), 10, "no process left")
    assert "nothing in the queue" in runs.command("cancel", run)
    return shown


def many(runs: Runs) -> dict[str, str]:
    """Forests, the models that begin soonest."""
    words = ["--model.name=forest", "--model.trees=5", "--folds=4", "--seeds=10", "--slots=2"]
    ids = runs.submit("many", *words)
    until(lambda: "RUNNING" in runs.cluster.states(ids["train"]).values(), 60, "a start")
    states = list(runs.cluster.states(ids["train"]).values())
    assert len(states) == 40 and states.count("RUNNING") <= 2
    assert runs.cluster.wait(ids["train"], 800) == {"COMPLETED"}
    assert runs.cluster.wait(ids["collect"]) == {"COMPLETED"}
    return ids


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with submitted(tmp_path_factory.mktemp("slurm"), folds=4) as found:
        found.config.append(f"--train.epochs={EPOCHS}")
        found.env["HELD"] = "1"
        yield found


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Told]:
    with telling(runs, [limited, many, died, preempted, signalled, cancelled]) as found:
        yield found


@pytest.fixture(scope="module")
def untouched(runs: Runs, told: Told) -> str:
    """The weights of a task that was left alone between two that were not."""
    told(signalled)
    assert [life[3:] for life in lives(task(runs, 1))] == [["begin", "none"], ["end", "0"]]
    return weights(task(runs, 1))


def test_a_signal_and_a_requeue_of_one_task(runs: Runs, told: Told, untouched: str) -> None:
    """The array's last task has the array's own id: only it may start again."""
    ids = told(signalled)
    for number in (0, 2):
        found = lives(task(runs, number))
        assert {life[1] for life in found} == {f"{ids['train']}_{number}"}
        assert [life[3] for life in found] == ["begin", "end", "begin", "end"]
        assert weights(task(runs, number)) == untouched
    log = (task(runs, 2) / "train.log").read_text()
    assert "stopped by SIGUSR1 after step" in log and "begins at step-" in log
    assert log.count(f"epoch 1/{EPOCHS}") == log.count(f"epoch {EPOCHS}/{EPOCHS}") == 1


@pytest.mark.parametrize(
    "story, said",
    [
        (limited, "requeued: the limit is near"),
        (preempted, "requeued: preempted"),
        (died, "taken over from process"),
    ],
)
def test_what_ends_a_task_changes_nothing(runs, told, untouched, story, said):
    told(story)
    folder = runs.fold(story.__name__)
    begun = [life for life in lives(folder) if life[3] == "begin"]
    assert len(begun) >= 2 and begun[0][4] == "none" and begun[1][4].startswith("step-")
    assert weights(folder) == untouched
    log = (folder / "train.log").read_text()
    assert said in log and log.count(f"epoch {EPOCHS}/{EPOCHS}") == 1


def test_wandb_goes_on_with_its_run_after_a_requeue(runs: Runs, told: Told) -> None:
    told(preempted)
    folder = runs.fold("preempted")
    parts = [path.name.rpartition("-") for path in folder.glob("wandb/offline-run-*")]
    assert len({part[0] for part in parts}) >= 2  # lives
    assert {part[2] for part in parts} == {(folder / "wandb_id.txt").read_text()}


def test_cancel_is_final_and_clean(runs: Runs, told: Told) -> None:
    shown, folder = told(cancelled), runs.fold("cancelled")
    assert re.search(r"fold-0 +running +n\d +\d+ +\d+ .* 0 +epoch \d+/9999", shown), shown
    newest = checkpoint.checkpoints(folder / "checkpoints")[-1]
    assert not checkpoint.damage(newest)
    marker = json.loads((folder / "requeue").read_text())
    assert marker["signal"] == "SIGTERM" and marker["step"] == checkpoint.step_of(newest)
    found = [life[3:] for life in lives(folder)]
    assert [life[0] for life in found] == ["begin", "begin", "end", "end"] and found[2][1] == "2"


def test_forty_tasks_on_two_slots(runs: Runs, told: Told) -> None:
    told(many)
    found = list(runs.run("many").glob("seed-*/fold-*/scores.json"))
    assert len(found) == 40
    assert len({weights(scores.parent) for scores in found}) == 40
