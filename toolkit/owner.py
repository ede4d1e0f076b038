"""Who holds a run, and whether it still can: a process of a machine, a job of Slurm's."""

import json
import os
import platform
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

from toolkit.world import slurm_job

Owner = dict[str, Any]
#: What stands for one whose words were torn: only the time tells of it.
UNREADABLE: Owner = {
    "host": "?", "pid": 0, "job": None, "machine": None, "token": None, "since": "?",
    "cluster": None, "life": 0, "started": None,
}  # fmt: skip


def this_process() -> Owner:
    """What tells this process from all others, on any machine, at any time."""
    return {
        "host": platform.node(), "pid": os.getpid(), **slurm_job(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "started": started(os.getpid()), "machine": machine(), "token": secrets.token_hex(8),
    }  # fmt: skip


def parse(text: str) -> Owner:
    """The words of a lock; UNREADABLE if a machine died while it wrote them."""
    try:
        return UNREADABLE | json.loads(text)
    except (ValueError, TypeError):
        return UNREADABLE


def name(there: Owner) -> str:
    """Who it is, as `process 4711 on n1, Slurm job 12_3, since 2026-01-31T12:00:00Z`."""
    job = f", Slurm job {there['job']}" if there.get("job") else ""
    return f"process {there['pid']} on {there['host']}{job}, since {there['since']}"


def machine() -> str:
    """What a process number belongs to: a host since it was booted, or a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def started(pid: int) -> str | None:
    """When a process began, since numbers come again; None if there is none, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def ended(there: Owner) -> bool:
    """Whether an owner on this machine has ended; False of one elsewhere."""
    return there["machine"] == machine() and started(there["pid"]) != there["started"]


def why_gone(there: Owner, here: Owner, silence: float, stale: float) -> str | None:
    """Why the owner `there` cannot be training any more, None if it may be; `silence` (s) is the
    time since its last sign of life, and `stale` how long one lasts."""
    job = there["job"]
    known = job is not None and there["cluster"] == here["cluster"]
    if known and job == here["job"] and there["life"] != here["life"]:
        return "Slurm started its job again"
    if there["machine"] == here["machine"]:
        return "it has ended" if ended(there) else None
    if known and job != here["job"] and unknown_to_slurm(job):
        return "Slurm runs its job no more"
    return f"no sign of life for {silence:.0f} s" if silence > stale else None


def unknown_to_slurm(job: str) -> bool:
    """Whether Slurm says that a job does not run; one that cannot be asked says nothing."""
    try:
        asked = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode:
        return "Invalid job id" in done.stderr
    return not set(done.stdout.split()) - {"PENDING"}
