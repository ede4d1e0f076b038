"""Builds killed at random instants and started again: does each end in the same bytes?

    python bench/kills.py [AUDIO] --n=50 [--segment_seconds=5 ...] [--write]

Each of the n builds is started, its whole process group killed (SIGKILL) after a random time up to
that of an undisturbed build, and started again, until it is done. Then every file has to be that of
the undisturbed build, nothing else may be there, and `verify` has to be content. Without AUDIO it
is the demo's. Exit code 1 if a build differs. Ctrl-C ends it with the builds that are done.
"""

import contextlib
import hashlib
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from side_by_side import processor, publish

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {"workers": "2", "shard_size": "1MB"}  # many shards: many places to be killed at


def command(*words: str) -> list[str]:
    """A command line of shards."""
    return [sys.executable, "-m", "shards", *words]


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of everything below a folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def start_and_kill(words: list[str], after: float) -> bool:
    """Whether a build came to its end before it was killed.

    Raises:
        RuntimeError: it ended by itself, and badly.
    """
    process = subprocess.Popen(
        words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        said = process.communicate(timeout=after)[1]
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as end:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(end, KeyboardInterrupt):
            raise
        return False
    if process.returncode:
        raise RuntimeError(said.decode())
    return True


def trial(words: list[str], out: Path, longest: float, chance: random.Random) -> int:
    """Start a build until it is done, longer each time; how often it was killed, once at least."""
    kills = 0
    while True:
        done = start_and_kill(words, chance.uniform(0, longest * (1 + kills / 4)))
        if done and kills:
            return kills
        if done:
            shutil.rmtree(out)  # it got away: not a trial
        else:
            kills += 1


def main() -> int:
    """Print a table; the exit code."""
    flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
    places = [word for word in sys.argv[1:] if not word.startswith("--")]
    write = flags.pop("write", None) is not None
    n, chance = int(flags.pop("n", 50)), random.Random(int(flags.pop("random", 0)))
    settings = [f"--{name}={value}" for name, value in (DEFAULTS | flags).items()]
    with tempfile.TemporaryDirectory() as folder:
        audio = str(Path(places[0]).resolve()) if places else f"{folder}/audio"
        if not places:
            subprocess.run(command("demo", audio), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        out = Path(folder, "whole")
        began = time.monotonic()
        subprocess.run(command("build", audio, str(out), *settings), cwd=ROOT, check=True)
        took, whole = time.monotonic() - began, hashes(out)
        kills, same, sound = [], 0, 0
        with contextlib.suppress(KeyboardInterrupt):
            for number in range(n):
                out = Path(folder, str(number))
                words = command("build", audio, str(out), *settings)
                killed = trial(words, out, took, chance)
                is_same = hashes(out) == whole and sorted(map(str, out.rglob("*"))) == sorted(
                    str(out / name) for name in whole
                )
                is_sound = not subprocess.run(
                    command("verify", str(out)), cwd=ROOT, capture_output=True
                ).returncode
                shutil.rmtree(out)
                kills, same, sound = [*kills, killed], same + is_same, sound + is_sound
        n = len(kills)
    head = ("audio", "files", "undisturbed", "builds", "kills", "most in one", "same", "sound")
    counts = (n, sum(kills), max(kills, default=0), same, sound)
    cells = (Path(audio).name, len(whole), f"{took:.1f} s", *counts)
    name = Path(audio).name
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(map(str, cells))} |", ""]
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    lines.append(f"{date.today()}, {processor()}, {os.cpu_count()} cores; {versions}.")
    words = shlex.join(["kills.py", *([name] if places else []), f"--n={n}", *settings])
    publish(f"kills-{name}", f"Builds killed at random instants: {name}", lines, write, words)
    return 0 if same == sound == n else 1


if __name__ == "__main__":
    sys.exit(main())
