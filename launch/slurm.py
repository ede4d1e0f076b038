"""Slurm's commands, and what they said."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from shards.errors import TrainingError, UserError

#: What a job leaves in the environment of those that are submitted from inside of it.
INHERITED = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC)_")
KEPT = "SLURM_CONF"


def run(*words: str) -> str:
    """What a command prints.

    Raises:
        UserError: this machine has no such command.
        TrainingError: it failed; its own words.
    """
    if not shutil.which(words[0]):
        raise UserError(
            f"{words[0]}: no Slurm on this machine; submit from a login node of the cluster, or "
            "train here: python -m launch.local CONFIG --folds=5"
        )
    env = {k: v for k, v in os.environ.items() if k == KEPT or not INHERITED.match(k)}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if done.returncode:
        raise TrainingError(f"{words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def submit(script: str, words: Sequence[str]) -> str:
    """Submit a file; the job's id."""
    return run("sbatch", "--parsable", *words, script).strip().split(";")[0]


def queue(jobs: Sequence[str]) -> dict[str, dict[str, str]]:
    """What squeue knows of some jobs, a row a task: state, node, time left, reason, restarts.

    Jobs that Slurm has forgotten are not there; tasks that wait are told one by one.
    """
    columns = {"state": "%T", "node": "%N", "limit": "%L", "reason": "%r"}
    rows = {}
    for job in jobs:
        try:
            form = "|".join(["%i", *columns.values()])
            text = run("squeue", "-h", "-r", "-j", job, "-o", form)
        except TrainingError:  # an id that is long gone
            continue
        for line in text.splitlines():
            task, *values = line.split("|", len(columns))
            rows[task] = dict(zip(columns, values, strict=True))
    return rows


def accounted(jobs: Sequence[str]) -> dict[str, str]:
    """State by task as accounting tells it; `{}` where a site has none."""
    try:
        text = run("sacct", "-n", "-X", "-P", "-D", "-j", ",".join(jobs), "-o", "JobID,State")
    except (TrainingError, UserError):
        return {}
    lines = (line.split("|") for line in text.splitlines())
    return {words[0]: words[1].split()[0] for words in lines if len(words) == 2 and words[1]}
