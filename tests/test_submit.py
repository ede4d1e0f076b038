"""What `launch.submit` would submit: texts to the letter, site files, and what is refused."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT

from launch import scripts, slurm, submission
from launch.scripts import Place
from launch.site import Site, read_site
from launch.status import clock, table
from launch.submit import main
from launch.tasks import Task, tasks
from shards.errors import UserError
from toolkit.config import load

GOLDEN = Path(__file__).parent / "golden"
PLACE = Place(
    cwd="/home/ann/my work",
    folder="/home/ann/my work/runs/it's 100% #1/jobs/20260131-120000",
    code="/home/ann/my work/runs/it's 100% #1/jobs/20260131-120000/code",
    config="/home/ann/my work/runs/it's 100% #1/jobs/20260131-120000/config.yaml",
    run="runs/it's 100% #1",
    python="/opt/env/bin/python",
)
SITE = Site(
    gpus=4, nodes=2, strategy="zero2", slots=2, partition="a100", cpu_partition="cpu",
    account="proj", qos="long", constraint="ib&ssd", time="1-00:00:00", mem="100G",
    cpus_per_gpu=8, gres="gpu:a100", signal=600, max_restarts=5,
    container="apptainer exec --nv 'my image.sif'", modules="cuda/12.4 gcc",
    activate="source '/opt/my env/bin/activate'", env=("NCCL_DEBUG=INFO", "NOTE=a b"),
    interface="ib0", sbatch=("--exclusive", "--comment=it's 1 #"),
)  # fmt: skip


def texts() -> dict[str, str]:
    """Every kind of script, of sites that ask for everything and for nothing."""
    plain = Site(gpus=1)
    settings = ["--data.shards=sets/a b", "--optim.lr=1e-3"]
    several = scripts.shards(SITE, PLACE, "my audio", "sets/a b", "--group_from='^(\\d)-'", 8)
    found = [
        ("train_everything", scripts.train(SITE, PLACE, tasks("0,3", "2"), settings)),
        ("train_single", scripts.train(plain, PLACE, [Task("", ())], [])),
        ("train_cpu", scripts.train(Site(gpus=0), PLACE, tasks("2", None), [])),
        *((script.name, script) for script in several),
        ("collect", scripts.collect(SITE, PLACE, 4)),
    ]
    return {name: script.text for name, script in found}


@pytest.mark.parametrize("name", texts())
def test_texts_to_the_letter(name: str) -> None:
    """After a change that is meant: PYTHONPATH=. python tests/test_submit.py"""
    assert texts()[name] == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", ["train_everything", "train_single", "shards"])
def test_a_shell_reads_the_words_that_were_typed(name: str) -> None:
    """The settings section, run by bash up to its end."""
    text = texts()[name].split(scripts.BEGIN)[1].split(scripts.END)[0]
    text += 'printf "%s\\0" "$code" "$run" "${container[@]}" -- "${words[@]}"'
    variables = {**os.environ, "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(["bash", "-uc", f"run=''; {text}"], env=variables, capture_output=True)
    said = done.stdout.decode().split("\0")[:-1]
    image = ["apptainer", "exec", "--nv", "my image.sif"] if name != "train_single" else []
    expected = {
        "train_everything": [
            "runs/it's 100% #1/seed-1/fold-3", *image, "--", "--data.shards=sets/a b",
            "--optim.lr=1e-3", "--train.seed=1", "--run.part=seed-1", "--data.fold=3",
        ],
        "train_single": ["runs/it's 100% #1", "--"],
        "shards": ["", *image, "--", "my audio", "sets/a b", "--group_from=^(\\d)-", "--part=3/8"],
    }  # fmt: skip
    assert said == [PLACE.code, *expected[name]], done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tone_set: Path) -> Path:
    """A folder to submit from, with a config and nobody's site file."""
    values: dict[str, Any] = {
        "run": {"name": "tones"},
        "data": {"shards": str(tone_set), "protocol": "kfold"},
        "model": {"name": "cnn_tiny", "norm_batch": 4},
    }
    (tmp_path / "tones.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_dry_run_prints_and_leaves_nothing(here, capsys):
    assert main(["tones.yaml", "--folds=4", "--gpus=2", "--seeds=2", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-7\n" in said and "#SBATCH --gpus-per-node=2\n" in said
    assert "# sbatch --dependency=afterany:TRAIN" in said and "--mem" not in said
    assert "7) run=runs/tones/seed-1/fold-3 words=(--train.seed=1 --run.part=seed-1" in said
    assert sorted(path.name for path in here.iterdir()) == ["tones.yaml"]


def test_a_file_says_what_the_site_wants_and_flags_overrule_it(here, capsys):
    file = here / "home/wavefold/slurm.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("account: 007\ngpus: 8\ntime: 8:00:00\nmodules: [cuda, gcc]\nsbatch: --x=1\n")
    site = read_site({"gpus": 2, "account": None})
    assert (site.account, site.gpus, site.time) == ("007", 2, "8:00:00")
    assert (site.modules, site.sbatch) == ("cuda gcc", ("--x=1",))
    for unlimited in ("0", "UNLIMITED"):
        assert read_site({"time": unlimited}).time == unlimited
    assert main(["tones.yaml", "--folds=4", "--dry_run", "--account=other"]) == 0
    assert "#SBATCH --account=other\n" in capsys.readouterr().out
    for text, message in (
        ("acount: proj", "unknown key acount; did you mean account?"),
        ("gpus: many", "expected a whole number"),
        ("modules:", "modules=None: expected a word"),
        ("- account", "expected keys and values"),
        ("gpus: -1", "--gpus=-1: at least 0"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            read_site({})


@pytest.mark.parametrize(
    "words, message",
    [
        (["--folds=4", "--nodse=2"], "did you mean nodes?"),
        (["--folds=4", "--gpus=1", "--strategy=zero2"], "ask for two or more"),
        (["--folds=4", "--strategy=fast"], "one of ddp, fsdp, zero1, zero2, zero3"),
        (["--folds=4", "--env=NCCL_DEBUG"], "expected NAME=VALUE"),
        (["--folds=4", "--sbatch=exclusive"], "expected an option of sbatch"),
        (["--folds=4", "--data.shards=nowhere"], "nowhere: no shard set"),
        (["--folds=5"], "has folds 0 to 3"),
        (["--folds=4", "--audio=nowhere"], "no such folder"),
        (["--folds=4", "--optim.lrr=1"], "did you mean lr?"),
        (["--folds=4", "--data.n_mels=99"], "99 asked"),
        (["--folds=4", "--time=5:30"], "--time=5:30: has to be over 360 s"),
        (["--folds=4", "--train.patience=3"], "needs a validation part"),
        (["--folds=4", "--grid=model.name=cnn_tiny,cnn_tny"], "did you mean cnn_tiny"),
        (["--folds=4", "--model.freeze=[sterm]"], "no such part"),
        (["--folds=4", "--model.init_from=nowhere"], "no best.safetensors there"),
        (["--folds=4", "--optim.class_weights={rain: 2}"], "no class 'rain'"),
        (["--folds=4", "--gpus=3"], "does not split over 3 processes"),
        (["--folds=4", "--model.name=forest", "--model.init_from=x"], "a forest has no such thing"),
        ([], "say which folds"),
    ],
)
def test_what_cannot_be_is_one_line(here, capsys, words, message):
    assert main(["tones.yaml", *words, "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_run_begun_with_other_settings_is_refused_before_it_waits(here, capsys):
    fold = here / "runs/tones/fold-0"
    fold.mkdir(parents=True)
    (fold / "config.yaml").write_text("run: {name: tones}\ntrain: {epochs: 7}\n")
    assert main(["tones.yaml", "--folds=1,2", "--train.epochs=8", "--dry_run"]) == 2
    assert "train.epochs: 7 there, 8 asked" in capsys.readouterr().err
    words = ["--train.epochs=8", "--train.resume=never", "--dry_run"]
    assert main(["tones.yaml", "--folds=1,2", *words]) == 0


@pytest.mark.parametrize("module", ["submit", "status", "cancel"])
def test_help_loads_nothing_heavy(module: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", f"launch.{module}", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "launch.slurm" in loaded and not loaded & {"torch", "sklearn", "matplotlib"}


def test_without_slurm(here, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(here))
    assert main(["tones.yaml", "--folds=4"]) == 2
    said = capsys.readouterr().err
    assert "python -m launch.local" in said and said.count("\n") == 1
    assert not (here / "runs").exists()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Slurm's commands noted, not run; ids count from 100."""
    said: list[tuple[str, ...]] = []

    def run(*words: str) -> str:
        said.append(words)
        return f"{99 + sum(w[0] == 'sbatch' for w in said) - 1};cluster\n"

    monkeypatch.setattr(slurm, "run", run)
    return said


def test_what_is_submitted_is_kept(here: Path, pretended: list[tuple[str, ...]]) -> None:
    """The chain of dependencies, and the code and config as they are now."""
    (here / "audio").mkdir()
    words = ["--folds=4", "--audio=audio", "--data.shards=new set", "--parts=2"]
    assert main(["tones.yaml", *words]) == 0
    chain = [[w for w in call if w.startswith("--dep")] for call in pretended[1:]]
    assert chain == [[], ["--dependency=afterok:100"], ["--dependency=afterok:101"],
                     ["--dependency=afterany:102"]]  # fmt: skip
    (kept,) = submission.submissions(Path("runs/tones"))
    assert kept.jobs == {"shards": "100", "merge": "101", "train": "102", "collect": "103"}
    assert kept.tasks == [f"fold-{n}" for n in range(4)]
    tones = yaml.safe_load((here / "tones.yaml").read_text())
    assert yaml.safe_load((kept.folder / "config.yaml").read_text()) == tones
    for name in ("train.py", "slurm/job.sh", "launch/gpu_n.yaml", "toolkit/report.html.j2"):
        assert (kept.folder / "code" / name).read_bytes() == (ROOT / name).read_bytes()
    assert json.loads((kept.folder / "jobs.json").read_text())["tasks"] == kept.tasks


def test_a_config_is_kept_with_its_base(here: Path, pretended: list[tuple[str, ...]]) -> None:
    (here / "other.yaml").write_text("base: tones.yaml\nrun: {name: o}\nmodel: {name: crnn}\n")
    assert main(["other.yaml", "--folds=4"]) == 0
    (kept,) = submission.submissions(Path("runs/o"))
    whole, asked = (load([str(file)]) for file in (kept.folder / "config.yaml", "other.yaml"))
    assert whole == asked and whole.model.norm_batch == 4


def test_a_full_disk_is_one_line_and_leaves_nothing(
    here: Path, pretended: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "jobs.json")

    for name, cancelled in (("write", True), ("keep_code", False)):
        monkeypatch.setattr(submission, name, full)
        pretended.clear()
        assert main(["tones.yaml", "--folds=4"]) == 2
        said = capsys.readouterr().err
        assert "No space left" in said and said.count("\n") == 1
        assert (("scancel", "101", "100") in pretended) is cancelled
        assert not (here / "runs/tones").exists()
    (here / "runs/tones/logs").mkdir(parents=True)
    (here / "runs/tones/logs/train-7.log").touch()
    assert main(["tones.yaml", "--folds=4"]) == 2
    assert [file.name for file in (here / "runs/tones").rglob("*")] == ["logs", "train-7.log"]


def test_the_copy_runs_and_not_the_working_folder(here, pretended):
    """Whatever lies in the working folder or PYTHONPATH by then; and it knows its commit."""
    assert main(["tones.yaml", "--folds=4"]) == 0
    (kept,) = submission.submissions(Path("runs/tones"))
    (here / "toolkit").mkdir()
    (here / "toolkit/__init__.py").write_text("raise SystemExit('the wrong one')")
    tree, code = kept.folder.resolve() / "code", "from toolkit import environment as e"
    words = [sys.executable, str(tree / "launch/module.py"), "launch.node"]
    done = subprocess.run(
        [*words, "folder", "tones.yaml", "--data.fold=2"], capture_output=True, text=True
    )
    assert done.stdout == "runs/tones/fold-2\n", done.stderr
    code = f"{code}; print(e.__file__); print(e.commit_and_state())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    file, commit = done.stdout.splitlines()
    assert Path(file).is_relative_to(tree)
    assert commit == (tree / "commit.txt").read_text()


def test_paths_and_durations_as_slurm_writes_them() -> None:
    assert scripts.option("output", "/a b/100%%/%j") == '#SBATCH --output="/a b/100%%/%j"'
    assert shlex.split(scripts.option("comment", 'say "x" \\').split(" ", 1)[1]) == [
        '--comment=say "x" \\'
    ]
    assert (clock(59), clock(90061)) == ("00:00:59", "1-01:01:01")
    assert table([("task", "state", "node"), ("fold-0", "", "")]) == ["task    state", "fold-0"]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in texts().items():
        (GOLDEN / f"{name}.sbatch").write_text(text)
