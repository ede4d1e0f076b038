"""The texts that sbatch is given: the templates in slurm/ with options and settings filled in.

All of it is a function of its arguments: `--dry_run` shows what would be submitted, to the letter.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.site import Site, python_of, setup_lines
from launch.tasks import Task

TEMPLATES = Path(__file__).resolve().parent.parent / "slurm"
BEGIN, END = "# --- settings ---\n", "# --- end of settings ---\n"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a submission lies; paths are absolute, but for the run's, which people read."""

    cwd: str  #: that all relative paths in configs begin at
    folder: str  #: scripts and, with a snapshot, code and config
    code: str  #: the tree that runs
    config: str
    run: str  #: the run's folder
    python: str  #: of the process that submits


@dataclass(frozen=True)
class Script:
    """A job to submit."""

    name: str
    text: str
    after: str | None = None  #: the job that it waits for
    condition: str = "afterany"  #: which ends of it will do

    def dependency(self, ids: Mapping[str, str]) -> list[str]:
        """What sbatch is told of the job before it, `ids` being those submitted so far."""
        if self.after is None or self.after not in ids:
            return []
        words = [f"--dependency={self.condition}:{ids[self.after]}"]
        return words + ["--kill-on-invalid-dep=yes"] * (self.condition == "afterok")


def fill(name: str, options: Mapping[str, str | int | None], settings: Iterable[str]) -> str:
    """A template with other #SBATCH lines and settings; an option of None is left out."""
    body = (TEMPLATES / f"{name}.sbatch").read_text(encoding="utf-8").split(END)[1]
    lines = ["#!/bin/bash", "# Written by python -m launch.submit."]
    lines += [option(key, value) for key, value in options.items() if value is not None]
    return "\n".join([*lines, "", BEGIN.strip(), *settings, END.strip(), body])


def option(name: str, value: str | int) -> str:
    """`#SBATCH --name=value`, the value in quotes where it needs them."""
    if name.startswith("-"):  # as it was typed, to a shell
        name, equals, value = name.partition("=")
        return f"#SBATCH {name}{equals}{quoted(value) if value else ''}"
    return f"#SBATCH --{name}={quoted(str(value))}"


def quoted(value: str) -> str:
    """A value as sbatch's own parser of #SBATCH lines reads it."""
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def common(site: Site, place: Place, name: str, log: str) -> dict[str, str | int | None]:
    """The options of every job."""
    logs = str(Path(place.cwd, place.run, "logs")).replace("%", "%%")  # a pattern, for sbatch
    return {
        "job-name": name,
        "chdir": place.cwd,
        "output": f"{logs}/{name}-{log}.log",
        "open-mode": "append",
        "account": site.account,
        "qos": site.qos,
        "nodes": 1,
        "ntasks-per-node": 1,
        "--requeue": "",
    }


def light(site: Site, place: Place, name: str, cpus: int) -> dict[str, str | int | None]:
    """The options of a job that needs no GPU."""
    chosen = {"partition": site.cpu_partition or site.partition, "cpus-per-task": cpus}
    return common(site, place, name, "%j") | chosen


def places(site: Site, place: Place) -> list[str]:
    """The settings of every job."""
    lines = [f"    {line}" for line in setup_lines(site)] or ["    :"]
    return [
        f"code={shlex.quote(place.code)}",
        f"python={shlex.quote(python_of(site, place.python))}",
        f"container=({shlex.join(shlex.split(site.container))})",
        "setup() {",
        *lines,
        "}",
    ]


def train(site: Site, place: Place, tasks: Sequence[Task], settings: Sequence[str]) -> Script:
    """The trainings of a run: an array, or one job where there is one without a name."""
    array = tasks[0].name != ""
    slots = f"%{site.slots}" if site.slots else ""
    by_gres = f"{site.gres}:{site.gpus}" if site.gres and site.gpus else None
    options = common(site, place, "train", "%A_%a" if array else "%j") | {
        "array": f"0-{len(tasks) - 1}{slots}" if array else None,
        "partition": site.partition,
        "constraint": site.constraint,
        "nodes": site.nodes,
        "cpus-per-task": site.cpus_per_gpu * max(1, site.gpus),
        "gres": by_gres,
        "gpus-per-node": site.gpus if site.gpus and not by_gres else None,
        "mem": site.mem,
        "time": site.time,
        "signal": f"B:USR1@{site.signal}",
    }
    options |= dict.fromkeys(site.sbatch, "")
    lines = [
        *places(site, place),
        f"nodes={site.nodes} gpus={site.gpus} strategy={site.strategy}",
        f"max_restarts={site.max_restarts}",
        f"config={shlex.quote(place.config)}",
    ]
    chosen = [choice(place, task, settings) for task in tasks]
    if array:
        numbered = [f"    {n}) {line} ;;" for n, line in enumerate(chosen)]
        lines += ['case "$SLURM_ARRAY_TASK_ID" in', *numbered, "esac"]
    else:
        lines += chosen
    return Script("train", fill("train_array" if array else "train_single", options, lines))


def choice(place: Place, task: Task, settings: Sequence[str]) -> str:
    """What a task sets: its folder, and the words behind the config."""
    run = f"{place.run}/{task.name}".rstrip("/")
    return f"run={shlex.quote(run)} words=({shlex.join([*settings, *task.words])})"


def shards(site: Site, place: Place, audio: str, out: str, flags: str, parts: int) -> list[Script]:
    """The build of a shard set in parts, and their merge."""
    options = common(site, place, "shards", "%A_%a") | {
        "array": f"0-{parts - 1}",
        "partition": site.cpu_partition or site.partition,
        "cpus-per-task": site.cpus_per_gpu,
        "time": site.time,
        "signal": "B:USR1@120",
    }
    words = shlex.join([audio, out, *shlex.split(flags)])
    part = f'"--part=$SLURM_ARRAY_TASK_ID/{parts}"'
    lines = [*places(site, place), f"max_restarts={site.max_restarts}", f"words=({words} {part})"]
    merging = [*places(site, place), f"out={shlex.quote(out)}"]
    build = Script("shards", fill("shards_array", options, lines))
    text = fill("shards_merge", light(site, place, "merge", 1), merging)
    return [build, Script("merge", text, "shards", "afterok")]


def collect(site: Site, place: Place, trainings: int) -> Script:
    """The report of a run, made of whatever is there once the trainings have ended."""
    lines = [*places(site, place), f"run={shlex.quote(place.run)} trainings={trainings}"]
    options = light(site, place, "collect", 1)
    return Script("collect", fill("collect", options, lines), "train")
