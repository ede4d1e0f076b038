"""From a config to a report on a real Slurm: what arrays, chains and nodes come to."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import SYSTEM
from processes import ROOT
from submitted import MARKS, SETTINGS, Runs, Told, lives, submitted, telling, weights

from launch import scripts
from launch.scripts import Place
from launch.site import Site
from launch.tasks import Task, tasks

pytestmark = MARKS
EPOCHS = 10


def plain(runs: Runs) -> dict[str, str]:
    """The way from audio to report, with three tasks of 32 of a node's 64 cores."""
    words = ["--data.shards=set of audio", "--audio=audio folder", "--parts=2", "--folds=3"]
    build = f"--build=--group_from='{SETTINGS['group_from']}' --folds=3"
    ids = runs.submit("plain", *words, build, "--sbatch=--exclude=n[3-5]", cpus_per_gpu=32)
    assert list(ids) == ["shards", "merge", "train", "collect"]
    assert runs.cluster.wait(ids["shards"]) | runs.cluster.wait(ids["merge"]) == {"COMPLETED"}
    runs.cluster.wait(ids["train"], 600)
    assert runs.cluster.wait(ids["collect"]) == {"COMPLETED"}
    return ids


def crashed(runs: Runs) -> dict[str, str]:
    """Fold 1 meets a folder where its metrics should be."""
    (runs.fold("crashed", 1) / "metrics.jsonl").mkdir(parents=True)
    ids = runs.submit("crashed", "--folds=0,1", "--train.max_steps=2")
    assert runs.cluster.wait(ids["train"], 600) == {"COMPLETED", "FAILED"}
    assert runs.cluster.wait(ids["collect"]) == {"FAILED"}
    return ids


def two_nodes(runs: Runs) -> dict[str, str]:
    """A task on two nodes, a process each, and one that asks for GPUs that are not there."""
    ids = runs.submit("two", "--folds=0,", "--nodes=2", "--train.log_every=1")
    batch = "--train.batch_size=64"  # whole groups on four GPUs
    refused = runs.submit("refused", "--folds=0,", "--nodes=2", batch, gpus=2)
    assert runs.cluster.wait(refused["train"], 600) == {"FAILED"}
    assert runs.cluster.wait(ids["train"], 600) == {"COMPLETED"}
    return ids


def by_hand(runs: Runs) -> str:
    """A template as it stands, from the root of the checkout."""
    out = ["--parsable", f"--output={runs.folder}/by_hand.log", f"--chdir={ROOT}"]
    own = ["--gpus-per-node=0", f"--export=ALL,PATH={Path(sys.executable).parent}:{SYSTEM}"]
    words = ["configs/demo.yaml", f"--data.shards={runs.folder}/set", "--train.max_steps=1"]
    words += [f"--run.dir={runs.folder}/hand"]
    job = runs.cluster.run("sbatch", *out, *own, "--array=2", "slurm/train_array.sbatch", *words)
    assert runs.cluster.wait(job.strip(), 600) == {"COMPLETED"}
    return job


def desk(runs: Runs) -> Path:
    """The same folds trained without Slurm."""
    words = ["--folds=3", "--jobs=1", "--run.dir=desk", "--run.name=plain", "--train.log_every=1"]
    runs.command("local", *runs.config, *words)
    return runs.folder / "desk/plain"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with submitted(tmp_path_factory.mktemp("slurm"), folds=3) as found:
        found.config.append(f"--train.epochs={EPOCHS}")
        yield found


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Told]:
    with telling(runs, [plain, desk, two_nodes, crashed, by_hand]) as found:
        yield found


def test_the_folds_of_two_nodes_are_those_of_the_desk(runs: Runs, told: Told) -> None:
    """From audio, which two tasks build of, to the report: folds.json bit for bit."""
    ids, mine, theirs = told(plain), runs.run("plain"), told(desk)
    assert (mine / "folds.json").read_bytes() == (theirs / "folds.json").read_bytes()
    assert (mine / "predictions.csv").read_bytes() == (theirs / "predictions.csv").read_bytes()
    for fold in (f"fold-{n}" for n in range(3)):
        assert weights(mine / fold) == weights(theirs / fold)
        job = json.loads((mine / fold / "environment.json").read_text())["slurm"]
        assert (job["SLURM_JOB_NUM_NODES"], job["SLURM_CPUS_PER_TASK"]) == ("1", "32")
        assert job["SLURM_ARRAY_JOB_ID"] == ids["train"]
    assert {lives(runs.fold("plain", fold))[0][2] for fold in range(3)} == {"n1", "n2"}


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").open())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_two_nodes_train_what_one_does(runs: Runs, told: Told) -> None:
    told(two_nodes)
    one, two = (losses(run) for run in (told(desk) / "fold-0", runs.fold("two")))
    assert len(two) == EPOCHS  # of a step each
    assert two == pytest.approx(one, rel=1e-4) and two != one
    log = (runs.fold("two") / "train.log").read_text()
    assert re.search(r"node 0 of 2, n\d: ranks 0 to 0 of 2, 0 GPUs, [\d.]+:2\d{4}", log)
    assert re.search(r"node 1 of 2, n\d: ranks 1 to 1 of 2", log)
    refused = (runs.fold("refused") / "train.log").read_text()
    assert "asked for 2 GPUs a node, and 0 are to be seen" in refused


def test_a_fold_that_crashes_is_named_with_its_last_words(runs: Runs, told: Told) -> None:
    ids, run = told(crashed), runs.run("crashed")
    found = [life[3:] for life in lives(run / "fold-1")]
    assert found == [["begin", "none"], ["end", "2"]]  # not requeued
    report = (run / "report.html").read_text()
    log = (run / f"logs/collect-{ids['collect']}.log").read_text()
    for text in (report, log):
        assert "2 of 3 folds missing: 2, 3 (fold-1, fold-2)" in text and "Is a directory" in text
    shown = runs.command("status", str(run))
    assert re.search(r"fold-0 +done", shown) and re.search(r"fold-1 +failed \(2\)", shown)


def test_a_template_by_hand(runs: Runs, told: Told) -> None:
    told(by_hand)
    assert (runs.folder / "hand/demo/fold-2/scores.json").exists()


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
    words = [*runs.config, "--folds=3", "--gpus=0", "--run.name=no", "--partition=nowhere"]
    said = runs.command("submit", *words, "--run.dir=no runs", code=2)
    assert "invalid partition" in said.lower() and said.count("\n") == 1
    assert not list((runs.folder / "no runs/no").glob("jobs/*"))
