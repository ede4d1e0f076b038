"""What a cluster wants of each job: flags of `launch.submit` over ~/.config/wavefold/slurm.yaml."""

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from launch.node import launch_file
from shards.command import nearest
from shards.errors import UserError
from toolkit.config import cast, read_words

EARLY = 60  # seconds that Slurm's signal may come before its time


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Each field is a flag, and a key of the file."""

    gpus: int = 1  #: a node; 0: one process a node, on its processors
    nodes: int = 1  #: a task
    strategy: str = "ddp"  #: ddp | fsdp | zero1 | zero2 | zero3
    slots: int | None = None  #: tasks that may run at a time; null: as many as there is room for
    partition: str | None = None
    cpu_partition: str | None = None  #: of jobs that need no GPU; null: the same
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None  #: limit of a training, as sbatch takes it; null: the partition's
    mem: str | None = None  #: a node; null: what the site gives
    cpus_per_gpu: int = 4  #: and of a process without a GPU
    gres: str | None = None  #: gpu, or gpu:TYPE: asks by --gres=gpu:TYPE:N, not --gpus-per-node=N
    signal: int = 300  #: seconds before the limit: a step and a checkpoint have to fit in
    max_restarts: int = 20
    container: str = ""  #: words in front of python
    modules: str = ""  #: for `module load`
    activate: str = ""  #: a line of shell that makes python the right one
    python: str = ""  #: empty: the one that submits, and with a container or activate python3
    env: tuple[str, ...] = ()  #: NAME=VALUE to export; may be given several times
    interface: str | None = None  #: network interface of NCCL and gloo, as ib0
    sbatch: tuple[str, ...] = ()  #: more #SBATCH options, as --exclusive; several times


def read_site(flags: Mapping[str, Any]) -> Site:
    """The flags that were given, before the keys of a person's file, before the defaults.

    Raises:
        UserError: a key that is unknown or of another kind, values that cannot be.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    found = read_file(Path(home).expanduser() / "wavefold" / "slurm.yaml")
    found |= {name: value for name, value in flags.items() if value is not None}
    site = Site(**found)
    check(site)
    return site


def read_file(file: Path) -> dict[str, Any]:
    """The keys of the file, `{}` where there is none."""
    values = (read_words(file) if file.exists() else None) or {}
    hints = get_type_hints(Site)
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values, as in `account: NAME`")
    for key in values:
        if key not in hints:
            raise UserError(f"{file}: unknown key {key}; {nearest(str(key), list(hints))}")
    return {key: typed(file, key, value, hints[key]) for key, value in values.items()}


def typed(file: Path, key: str, value: Any, hint: Any) -> Any:
    """A value of the file as the field's type; a list is several words."""
    words = list(map(str, value)) if isinstance(value, list) else value
    if get_origin(hint) is tuple:
        return tuple(words) if isinstance(words, list) else (str(words),)
    return cast(f"{file}: {key}", hint, " ".join(words) if isinstance(words, list) else words)


def check(site: Site) -> None:
    """Raise a UserError for a value that cannot be."""
    for name, least in {"gpus": 0, "nodes": 1, "cpus_per_gpu": 1, "signal": 60, "slots": 1}.items():
        value = getattr(site, name)
        if value is not None and value < least:
            raise UserError(f"--{name}={value}: at least {least}")
    limit = seconds(site.time or "")
    if limit and limit <= site.signal + EARLY:
        raise UserError(
            f"--time={site.time}: has to be over {site.signal + EARLY} s, since --signal="
            f"{site.signal} s before it, or up to {EARLY} s earlier, each training saves and ends"
        )
    for word in site.env:
        if not re.match(r"[A-Za-z_]\w*=", word):
            raise UserError(f"--env={word}: expected NAME=VALUE, as NCCL_DEBUG=INFO")
    for word in site.sbatch:
        if not word.startswith("-"):
            raise UserError(f"--sbatch={word}: expected an option of sbatch, as --exclusive")
    for field in fields(site):
        if "\n" in str(getattr(site, field.name)) and field.name != "activate":
            raise UserError(f"--{field.name}: expected one line")
    launch_file(site.nodes, site.gpus, site.strategy)


def seconds(limit: str) -> int | None:
    """A limit as sbatch takes it, `90` (minutes), `2:00:00` or `1-12`; 0 or None if it is none."""
    found = re.fullmatch(r"(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(?:(\d+):)??(\d+)(?::(\d+))?", limit)
    if not found:
        return None
    days, *clock = (int(word or 0) for word in found.groups())
    return days * 86400 + sum(n * unit for n, unit in zip(clock, 2 * (3600, 60, 1), strict=True))


def python_of(site: Site, own: str) -> str:
    """The interpreter of the jobs, `own` being that of this process."""
    return site.python or ("python3" if site.container or site.activate else own)


def setup_lines(site: Site) -> list[str]:
    """The lines of shell that run before all else."""
    lines = [f"module load {shlex.join(shlex.split(site.modules))}"] if site.modules else []
    lines += [site.activate] if site.activate else []
    env = list(site.env)
    if site.interface:
        env += [f"{name}_SOCKET_IFNAME={site.interface}" for name in ("NCCL", "GLOO")]
    return lines + [f"export {shlex.quote(word)}" for word in env]
