"""A submission in a run's folder: its scripts and job ids and, unless declined, code and config.

runs/NAME/jobs/20260131-120000/     train.sbatch collect.sbatch jobs.json config.yaml code/
runs/NAME/logs/                     what the jobs say, all lives of a task in one file
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from shards.durable import write_atomic
from shards.errors import UserError
from toolkit import environment
from toolkit.config import AsTyped, read_yaml

ROOT = Path(__file__).resolve().parent.parent
TREE = ("shards", "toolkit", "launch", "slurm", "train.py")


@dataclass(frozen=True)
class Submission:
    """What was submitted once."""

    folder: Path
    jobs: dict[str, str]  #: id by name: shards, merge, train, collect
    tasks: list[str]  #: names of the trainings, by their number in the array


def new_folder(run: Path) -> Path:
    """Where the next submission of a run goes; not made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    found, n = run / "jobs" / stamp, 1
    while found.exists():
        found, n = run / "jobs" / f"{stamp}-{n}", n + 1
    return found


def keep_code(folder: Path) -> None:
    """Copy the tree that runs now, with what numba has compiled of it, and note its commit, which a
    copy cannot ask git for."""
    if not (ROOT / "train.py").is_file():
        raise UserError(f"{ROOT}: no train.py; submit from a checkout, or with --no_snapshot")
    for name in TREE:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("*.pyc", ".*")
            shutil.copytree(ROOT / name, folder / "code" / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder / "code" / name)
    (folder / "code" / environment.COMMIT).write_text(environment.commit_and_state())


class Plain(yaml.SafeDumper):
    """Writes words as `read_yaml` reads them: without quotes around numbers."""

    yaml_implicit_resolvers = AsTyped.yaml_implicit_resolvers


def keep_config(folder: Path, config: Path) -> None:
    """Write what a config says now, with what its base says: a copy has no base beside it."""
    text = yaml.dump(read_yaml(config), Dumper=Plain, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def write(folder: Path, jobs: dict[str, str], tasks: Sequence[str]) -> None:
    """Note the ids of what was submitted."""
    text = json.dumps({"jobs": jobs, "tasks": list(tasks)}, indent=1)
    write_atomic(folder / "jobs.json", text.encode())


def submissions(run: Path) -> list[Submission]:
    """All of a run's, the last one last.

    Raises:
        UserError: the run does not exist, or was never submitted.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run; name the folder that submit printed, as runs/NAME")
    files = sorted(run.glob("jobs/*/jobs.json"))
    found = [Submission(file.parent, **json.loads(file.read_text())) for file in files]
    if not found:
        raise UserError(f"{run}: never submitted; python -m launch.submit CONFIG does it")
    return found
