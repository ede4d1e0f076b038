"""What a run notes of where it was trained: environment.json and, of a changed tree, a diff."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import shards
from shards.index import write_atomic
from toolkit.results import SECRET_NAME, redact
from toolkit.world import World

PACKAGES = (
    "torchaudio", "accelerate", "deepspeed", "numpy", "scipy", "scikit-learn",
    "safetensors", "einops", "wandb", "tensorboard",
)  # fmt: skip
#: Named one by one, because SLURM_JWT and SLURM_JOB_COMMENT are nobody's business.
SLURM = re.compile(
    r"SLURM_(CLUSTER_NAME|RESTART_COUNT|NTASKS|CPUS_PER_TASK|MEM_PER_NODE|GPUS_ON_NODE"
    r"|ARRAY_(JOB|TASK)_ID|JOB_(ID|NAME|PARTITION|QOS|NODELIST|NUM_NODES|GPUS|START_TIME|END_TIME))"
)
KEY_FILE = Path("wandb_api_key.txt")  #: in the working folder
GIT_WAITS = 30.0  # seconds
TREE = Path(__file__).parent
COMMIT = "commit.txt"  #: beside the packages of a copy of the tree, which git knows nothing of


def wandb_key() -> str | None:
    """W&B's key, from the environment or from wandb_api_key.txt; no other place may hold it."""
    key = os.environ.get("WANDB_API_KEY", "").strip()
    if not key and KEY_FILE.is_file():
        key = KEY_FILE.read_text(encoding="utf-8", errors="replace").strip()
    return key or None


def hide(text: str) -> str:
    """`text` without W&B's key and whatever the environment calls a key, a token or a password."""
    values = [value for name, value in os.environ.items() if SECRET_NAME.search(name)]
    for value in (wandb_key() or "", *values):
        text = text.replace(value, "***") if len(value) >= 8 else text
    return text


def write_environment(folder: Path, world: World) -> None:
    """Write environment.json, and changes.diff where git knows of changes that are not committed.

    The diff begins with the list of changed and new files; `git apply` passes over it.
    """
    changes, diff = git("status", "--porcelain"), folder / "changes.diff"
    found = environment(world) | {"git": commit_and_state() or None}
    write_atomic(folder / "environment.json", (json.dumps(found, indent=2) + "\n").encode())
    diff.unlink(missing_ok=True)  # of an earlier start
    if changes:
        parts = (":(top)", f":(top,exclude,glob)**/{KEY_FILE}")
        text = changes + "\n" + git("diff", "HEAD", "--no-ext-diff", "--no-color", "--", *parts)
        write_atomic(diff, hide(text).encode(errors="surrogateescape"))


def environment(world: World) -> dict[str, Any]:
    """Versions, machine and command, without secrets."""
    torch = sys.modules.get("torch")  # a forest needs none
    versions = {name: shards.installed(name) for name in PACKAGES}
    found: dict[str, Any] = {
        "wavefold": shards.__version__,
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
        "device": "cpu",
    }
    if torch:  # its version says which CUDA it is built for
        found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch and str(world.device).startswith("cuda"):
        found["device"] = torch.cuda.get_device_name(world.device)
        found |= {"gpus": gpus(), "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version()}
    found |= {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "world_size": world.size,
        "host": platform.node(),
        "system": platform.platform(),
        "command": redact(hide(shlex.join(sys.argv))),
    }
    slurm = {name: value for name, value in os.environ.items() if SLURM.fullmatch(name)}
    return found | ({"slurm": redact(slurm)} if slurm else {})


def gpus() -> list[str]:
    """The GPUs of this machine that the launch sees, with their memory."""
    import torch

    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in found]


def cpu_name() -> str:
    """The processor's name where Linux tells it."""
    found = re.search(r"^model name\s*: (.*?)\s*$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.processor()


def commit_and_state() -> str:
    """The commit that trains, with a `+` where the tree has changed since; empty outside git."""
    noted = TREE.parent / COMMIT
    if noted.exists():
        return noted.read_text()
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    return commit + "+" * bool(git("status", "--porcelain")) if commit else ""


def git(*words: str) -> str:
    """What git says of the tree of this file; empty where it says nothing, as in a copy of it."""
    if (TREE.parent / COMMIT).exists():
        return ""
    command = ["git", "-C", str(TREE), *words]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=GIT_WAITS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="surrogateescape")
