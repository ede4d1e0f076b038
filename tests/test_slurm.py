"""Jobs on a real Slurm: arrays, limits, preemption, dead nodes, crashes; and what they end in.

Starting torch costs each job six seconds of a processor, so several stories are told at a time,
each by a thread that submits, interferes and waits; a test asks for the end of one. Those that take
or kill a node have it to themselves: n3, n4 and n5.
"""

import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cluster import SYSTEM, Cluster, throwaway, until, why_not
from conftest import GROUP_FROM, SETTINGS, build_tones
from processes import ROOT

from launch import scripts
from launch.scripts import Place
from launch.site import Site
from launch.tasks import Task, tasks
from toolkit import checkpoint

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm here: {why_not()}"),
]
SHARED = "--exclude=n[3-5]"
AT_A_TIME = 5  # stories: more would wait for each other
EPOCHS = 60  # of 5 steps each, 20 ms a step: time to interfere


class Runs:
    """The runs of this module: their config, and how they are submitted."""

    def __init__(self, cluster: Cluster, folder: Path, shards: Path):
        self.cluster, self.folder = cluster, folder
        mel = {k: v for k, v in SETTINGS.items() if k != "group_from"}
        values = {
            "run": {"name": "plain", "dir": "runs of 100% #1"},
            "data": {"shards": str(shards), "protocol": "kfold", **mel},
            "model": {"name": "cnn_tiny", "norm_batch": 4},
            "train": {"epochs": EPOCHS, "batch_size": 8, "log_every": 1, "threads": 1},
        }
        self.config = folder / "tones.yaml"
        self.config.write_text(yaml.safe_dump(values))
        self.env = {**cluster.env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # as if submitted from inside another job
        self.env |= {"SLURM_JOB_ID": "99", "SLURM_CPUS_PER_TASK": "77", "SBATCH_PARTITION": "none"}

    def command(self, module: str, *words: str, code: int = 0) -> str:
        """What a command of ours prints."""
        command = [sys.executable, "-m", f"launch.{module}", *words]
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, name: str, *words: str, **flags: Any) -> dict[str, str]:
        """Submit a run, by default of two cores a task and 20 minutes; ids of its jobs."""
        flags = {"gpus": 0, "cpus_per_gpu": 2, "time": 20} | flags
        named = [f"--{flag}={value}" for flag, value in flags.items()]
        if not any("--nodelist" in word or "--exclude" in word for word in words):
            named += [f"--sbatch={SHARED}"]
        told = self.command("submit", "tones.yaml", f"--run.name={name}", *named, *words)
        assert f"python -m launch.status 'runs of 100% #1/{name}'" in told
        return dict(re.findall(r"^(\w+) +(\d+) ", told, re.M))

    def run(self, name: str) -> Path:
        return self.folder / "runs of 100% #1" / name

    def fold(self, name: str, fold: int = 0) -> Path:
        return self.run(name) / f"fold-{fold}"

    def begun(self, name: str, fold: int = 0, steps: int = 6) -> None:
        """Wait until a training has done some steps."""
        file = self.fold(name, fold) / "metrics.jsonl"
        until(lambda: file.exists() and len(file.read_text().splitlines()) > steps, 200, name)
        saved = self.fold(name, fold) / "checkpoints"
        until(lambda: bool(checkpoint.checkpoints(saved)), 200, f"a checkpoint of {name}")

    def lives(self, name: str, fold: int = 0) -> list[list[str]]:
        """Time, task, node, begin or end, and of what."""
        return [line.split() for line in (self.fold(name, fold) / "lives.txt").open()]

    def log(self, name: str, fold: int = 0) -> str:
        return (self.fold(name, fold) / "train.log").read_text()


def plain(runs: Runs) -> dict[str, str]:
    """The way from audio to report, code and config kept, both changed while the jobs wait."""
    words = ["--data.shards=set of audio", "--audio=audio folder", "--parts=2", "--folds=3"]
    build = f"--build=--group_from='{GROUP_FROM}' --folds=3 --shard_size=100KB"
    ids = runs.submit(
        "plain", *words, build, "--sbatch=--cpus-per-task=32", "--sbatch=--exclude=n[3-5]"
    )
    assert list(ids) == ["shards", "merge", "train", "collect"]
    assert runs.cluster.wait(ids["shards"]) | runs.cluster.wait(ids["merge"]) == {"COMPLETED"}
    runs.cluster.wait(ids["train"], 300)
    assert runs.cluster.wait(ids["collect"]) == {"COMPLETED"}
    return ids


def signalled(runs: Runs) -> dict[str, str]:
    """Of three folds the last gets USR1, the first is requeued, the second left alone."""
    ids = runs.submit("signalled", "--folds=3")
    for fold in range(3):
        runs.begun("signalled", fold)
    runs.cluster.run("scancel", "--signal=USR1", "--batch", f"{ids['train']}_2")
    runs.cluster.run("scontrol", "requeue", f"{ids['train']}_0")
    assert runs.cluster.wait(ids["train"], 300) == {"COMPLETED"}
    return ids


def limited(runs: Runs) -> dict[str, str]:
    """A limit of two minutes strikes; the training is suspended until then, to cost nothing."""
    ids = runs.submit("limited", "--folds=0,", time=2, signal=60)
    runs.begun("limited")
    job = runs.cluster.processes(SLURM_JOB_ID=ids["train"])
    (trainer,) = (p for p in job if any(word.endswith("/train.py") for word in p.cmdline()[:2]))
    trainer.suspend()
    status = Path(f"/proc/{trainer.pid}/status")

    def told() -> bool:
        pending = re.findall(r"(?:Sig|Shd)Pnd:\s+(\w+)", status.read_text())
        return any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in pending)

    until(told, 120, "USR1 before the limit")
    trainer.resume()
    assert runs.cluster.wait(ids["train"], 300) == {"COMPLETED"}
    return ids


def preempted(runs: Runs) -> dict[str, str]:
    """In a container, as it were, from which no scontrol can be reached."""
    own = ["--container=env PATH=/nowhere MARK=inside", f"--python={sys.executable}"]
    own += ["--env=OUTER=set", "--activate=unset SLURM_JOB_NAME"]
    ids = runs.submit("preempted", "--folds=0,", "--sbatch=--nodelist=n3", *own)
    runs.begun("preempted")
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-w", "n3", "--exclusive", "-o", "/dev/null"]
    job = runs.cluster.run(*urgent, "--wrap", "sleep 1").strip()
    assert runs.cluster.wait(job) == {"COMPLETED"}
    until(lambda: bool(runs.cluster.processes(MARK="inside", OUTER="set")), 60, "the container")
    assert runs.cluster.wait(ids["train"], 300) == {"COMPLETED"}
    return ids


def died(runs: Runs) -> dict[str, str]:
    """A node dies, its daemon first, that nobody tell of it."""
    ids = runs.submit("died", "--folds=0,", "--sbatch=--exclude=n1,n2,n3")
    runs.begun("died")
    (node,) = {life[2] for life in runs.lives("died")}
    runs.cluster.daemons[f"slurmd-{node}"].kill()
    runs.cluster.daemons[f"slurmd-{node}"].wait()
    job = runs.cluster.processes(SLURMD_NODENAME=node)
    daemons = [p for p in runs.cluster.processes() if f"[{ids['train']}." in " ".join(p.cmdline())]
    for process in daemons + job:  # the steps' daemons would tell
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert runs.cluster.wait(ids["train"], 300) == {"COMPLETED"}
    return ids


def cancelled(runs: Runs) -> str:
    """Ended by `launch.cancel`; what `launch.status` showed before."""
    ids = runs.submit("cancelled", "--folds=0,", "--train.epochs=9999")
    runs.begun("cancelled")
    shown = runs.command("status", "runs of 100% #1/cancelled")
    twice = runs.submit("cancelled", "--folds=0,", "--train.epochs=9999")["train"]
    assert runs.cluster.wait(twice) == {"FAILED"}
    log = runs.run("cancelled") / f"logs/train-{twice}_0.log"
    assert "fold-0 is being trained by process" in log.read_text()
    job = runs.cluster.processes(SLURM_JOB_ID=ids["train"])
    assert any("train.py" in " ".join(process.cmdline()) for process in job)
    assert ids["train"] in runs.command("cancel", "runs of 100% #1/cancelled")
    assert runs.cluster.wait(ids["train"]) == {"CANCELLED"}
    assert runs.cluster.wait(ids["collect"]) == {"CANCELLED"}
    until(lambda: not runs.cluster.processes(SLURM_JOB_ID=ids["train"]), 10, "no process left")
    assert "nothing in the queue" in runs.command("cancel", "runs of 100% #1/cancelled")
    return shown


def crashed(runs: Runs) -> dict[str, str]:
    """Fold 1 meets a folder where its metrics should be, and raises."""
    (runs.fold("crashed", 1) / "metrics.jsonl").mkdir(parents=True)
    ids = runs.submit("crashed", "--folds=3", "--train.max_steps=2")
    assert runs.cluster.wait(ids["train"], 300) == {"COMPLETED", "FAILED"}
    assert runs.cluster.wait(ids["collect"], 120) == {"FAILED"}
    return ids


def two_nodes(runs: Runs) -> dict[str, str]:
    """A task on two nodes, a process each; stopped once, and then two more that are refused."""
    ids = runs.submit("two", "--folds=0,", "--nodes=2", "--train.max_steps=20")
    refused = runs.submit("refused", "--folds=0,", "--nodes=2", gpus=2)
    assert runs.cluster.wait(ids["train"], 300) == {"COMPLETED"}
    assert runs.cluster.wait(refused["train"], 300) == {"FAILED"}
    return ids


def by_hand(runs: Runs) -> str:
    """A template as it stands, from the root of the checkout."""
    out = ["--parsable", f"--output={runs.folder}/by_hand.log", f"--chdir={ROOT}"]
    own = ["--gpus-per-node=0", f"--export=ALL,PATH={Path(sys.executable).parent}:{SYSTEM}"]
    config = [str(runs.config), f"--run.dir={runs.folder}/hand", "--train.max_steps=1"]
    template = str(ROOT / "slurm/train_array.sbatch")
    job = runs.cluster.run("sbatch", *out, *own, "--array=2", SHARED, template, *config).strip()
    assert runs.cluster.wait(job, 300) == {"COMPLETED"}
    return job


def many(runs: Runs) -> dict[str, str]:
    words = ["--folds=4", "--seeds=10", "--slots=2", "--train.max_steps=1"]
    ids = runs.submit("many", f"--data.shards={runs.folder / 'four'}", *words)
    until(lambda: "RUNNING" in runs.cluster.states(ids["train"]).values(), 60, "a start")
    states = list(runs.cluster.states(ids["train"]).values())
    assert len(states) == 40 and states.count("RUNNING") <= 2
    assert runs.cluster.wait(ids["train"], 1000) == {"COMPLETED"}
    assert runs.cluster.wait(ids["collect"], 60) == {"COMPLETED"}
    return ids


def desk(runs: Runs) -> str:
    """The same folds trained without Slurm."""
    runs.command("local", "tones.yaml", "--folds=3", "--jobs=1", f"--run.dir={runs.folder}/desk")
    return str(runs.folder / "desk/plain")


STORIES = [limited, many, desk, died, preempted, plain, signalled, two_nodes, cancelled, crashed]
STORIES += [by_hand]
Told = Callable[[Callable[[Runs], Any]], Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tones: Path, tone_set: Path) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("slurm")
    build_tones(tones, folder / "set", folds=3)
    (folder / "four").symlink_to(tone_set)
    (folder / "audio folder").symlink_to(tones)
    with throwaway() as cluster:
        yield Runs(cluster, folder, folder / "set")


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Told]:
    """Waits for a story to end; all begin with the first one that is asked for."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ends: dict[Any, Future[Any]] = {story: pool.submit(story, runs) for story in STORIES}
        try:
            yield lambda story: ends[story].result()
        finally:
            runs.cluster.stop()


@pytest.fixture(scope="module")
def at_the_desk(told: Told) -> str:
    return told(desk)


def weights(run: Path) -> str:
    return hashlib.sha256((run / "best.safetensors").read_bytes()).hexdigest()


def timeless(file: Path) -> dict[str, Any]:
    """folds.json without the seconds that each fold took."""
    summary = json.loads(file.read_text())
    for fold in summary["folds"]:
        assert fold.pop("seconds") > 0
    return summary


def test_from_audio_to_a_report(runs: Runs, told: Told, at_the_desk: str) -> None:
    """Two nodes, three tasks of 32 of a node's 64 cores; the numbers are those of the desk."""
    told(plain)
    pair = runs.run("plain"), Path(at_the_desk)
    assert timeless(pair[0] / "folds.json") == timeless(pair[1] / "folds.json")
    for fold in range(3):
        mine, theirs = (run / f"fold-{fold}/predictions.csv" for run in pair)
        assert mine.read_bytes() == theirs.read_bytes()
        job = json.loads((runs.fold("plain", fold) / "environment.json").read_text())["slurm"]
        assert job["SLURM_JOB_NUM_NODES"] == "1" and "SLURM_CPUS_PER_TASK" in job
        assert job["SLURM_CPUS_PER_TASK"] == "32"
    assert {runs.lives("plain", fold)[0][2] for fold in range(3)} == {"n1", "n2"}


def test_a_signal_and_a_requeue_of_one_task(runs: Runs, told: Told, at_the_desk: str) -> None:
    """The array's last task has the array's own id: only it may start again."""
    ids = told(signalled)
    assert [len(runs.lives("signalled", fold)) for fold in range(3)] == [4, 2, 4]
    for fold in range(3):
        assert runs.lives("signalled", fold)[0][1] == f"{ids['train']}_{fold}"
        assert weights(runs.fold("signalled", fold)) == weights(Path(at_the_desk, f"fold-{fold}"))
    log = runs.log("signalled", 2)
    assert "stopped by SIGUSR1 after step" in log and "begins at step-" in log
    assert log.count("epoch 1/60") == log.count("epoch 60/60") == 1


@pytest.mark.parametrize(
    "story, said",
    [
        (limited, "requeued: the limit is near"),
        (preempted, "requeued: preempted"),
        (died, "taken over from process"),
    ],
)
def test_what_ends_a_task_changes_nothing(
    runs: Runs, told: Told, at_the_desk: str, story: Callable[[Runs], Any], said: str
) -> None:
    told(story)
    name = story.__name__
    begun = [life for life in runs.lives(name) if life[3] == "begin"]
    assert len(begun) >= 2 and begun[0][4] == "none" and begun[1][4].startswith("step-")
    assert weights(runs.fold(name)) == weights(Path(at_the_desk, "fold-0"))
    assert said in runs.log(name) and runs.log(name).count("epoch 60/60") == 1


def test_cancel_is_final_and_clean(runs: Runs, told: Told) -> None:
    shown = told(cancelled)
    assert re.search(r"fold-0 +running +n\d +\d+ +\d+ .* 0 +epoch \d+/9999", shown), shown
    newest = checkpoint.checkpoints(runs.fold("cancelled") / "checkpoints")[-1]
    assert not checkpoint.damage(newest)
    marker = json.loads((runs.fold("cancelled") / "requeue").read_text())
    assert marker["signal"] == "SIGTERM" and marker["step"] == checkpoint.step_of(newest)
    lives = [life[3:] for life in runs.lives("cancelled")]
    assert [life[0] for life in lives] == ["begin", "begin", "end", "end"] and lives[2][1] == "2"


def test_a_fold_that_crashes_is_named_with_its_last_words(runs: Runs, told: Told) -> None:
    ids = told(crashed)
    assert [life[3:] for life in runs.lives("crashed", 1)] == [["begin", "none"], ["end", "1"]]
    report = (runs.run("crashed") / "report.html").read_text()
    log = (runs.run("crashed") / f"logs/collect-{ids['collect']}.log").read_text()
    for text in (report, log):
        assert "1 of 3 folds missing: 2" in text and "IsADirectoryError" in text
    shown = runs.command("status", "runs of 100% #1/crashed")
    assert re.search(r"fold-0 +done", shown) and re.search(r"fold-1 +failed \(1\)", shown)


def test_two_nodes_train_what_one_does(runs: Runs, told: Told, at_the_desk: str) -> None:
    told(two_nodes)
    one, two = (losses(p) for p in (Path(at_the_desk, "fold-0"), runs.fold("two")))
    assert len(two) == 20
    assert two == pytest.approx(one[:20], rel=1e-4) and two != one[:20]
    log = runs.log("two")
    assert re.search(r"node 0 of 2, n\d: ranks 0 to 0 of 2, 0 GPUs, [\d.]+:2\d{4}", log)
    assert re.search(r"node 1 of 2, n\d: ranks 1 to 1 of 2", log)
    assert "asked for 2 GPUs a node, and 0 are to be seen" in runs.log("refused")


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").open())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_forty_tasks_on_two_slots(runs: Runs, told: Told) -> None:
    told(many)
    found = list(runs.run("many").glob("seed-*/fold-*/scores.json"))
    assert len(found) == 40
    assert len({weights(scores.parent) for scores in found}) == 40


def test_a_template_by_hand(runs: Runs, told: Told) -> None:
    told(by_hand)
    assert (runs.folder / "hand/plain/fold-2/scores.json").exists()


SITES = [
    Site(gpus=0), Site(gpus=4, time="1-00:00:00", signal=600, mem="1G", slots=2),
    Site(gpus=2, gres="gpu", nodes=2, partition="urgent", sbatch=("--exclusive", "--comment=a b")),
]  # fmt: skip


@pytest.mark.parametrize("site", SITES, ids=["cpu", "gpu", "gres"])
def test_sbatch_takes_every_text(runs: Runs, site: Site, tmp_path: Path) -> None:
    folder = str(tmp_path / "it's 100% #1")
    place = Place(cwd=folder, folder="x", code="x", config="x", run="x y", python="python3")
    chain = [*scripts.shards(site, place, "a b", "c d", "", 3), scripts.collect(site, place, 3)]
    chain.append(scripts.train(site, place, tasks("3", "2"), []))
    chain.append(scripts.train(site, place, [Task("", ())], []))
    for script in chain:
        (tmp_path / "job").write_text(script.text)
        runs.cluster.run("sbatch", "--test-only", str(tmp_path / "job"))


@pytest.mark.parametrize("file", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda f: f.stem)
def test_sbatch_takes_the_templates(runs: Runs, file: Path) -> None:
    runs.cluster.run("sbatch", "--test-only", str(file), "config.yaml")


def test_what_sbatch_refuses_leaves_nothing(runs: Runs) -> None:
    words = ["tones.yaml", "--folds=3", "--gpus=0", "--run.name=no", "--partition=nowhere"]
    told = runs.command("submit", *words, code=2)
    assert "invalid partition" in told.lower() and told.count("\n") == 1
    assert not list(runs.run("no").glob("jobs/*"))
