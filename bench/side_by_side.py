"""What the benchmarks share: turns taken one after the other, ratios round by round, one table."""

import argparse
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = "# Results\n\nWritten by the scripts beside this file: `make bench`.\n"


class Turn(NamedTuple):
    """What one run of a contestant took, in seconds."""

    wall: float
    cpu: float


#: Does its work once; CPU seconds that it spent in other processes, if any.
Contestant = Callable[[], float | None]


def one_thread() -> None:
    """Keep every library in this process to one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    torch.set_num_threads(1)


def take_turns(
    contestants: Mapping[str, Contestant],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[Turn]]:
    """Run all once unmeasured, then A B C A B C ..., so that a busy spell falls on all of them;
    with something unmeasured `before` each turn."""
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for n in range(-1, rounds):
        for name, run in contestants.items():
            before()
            wall, cpu = perf_counter(), process_time()
            elsewhere = run() or 0.0
            turn = Turn(perf_counter() - wall, process_time() - cpu + elsewhere)
            if n >= 0:
                turns[name].append(turn)
    return turns


def times(turns: Mapping[str, list[Turn]], units: Mapping[str, int], unit: str) -> list[str]:
    """A Markdown table: medians and spread in seconds, and microseconds of `unit`."""
    lines = [f"| | wall s | spread | CPU s | us a {unit} |", "|---|---|---|---|---|"]
    for name, runs in turns.items():
        wall = sorted(run.wall for run in runs)
        middle, cpu = statistics.median(wall), statistics.median(run.cpu for run in runs)
        spread, each = f"{wall[0]:.3f} to {wall[-1]:.3f}", f"{1e6 * middle / units[name]:.2f}"
        lines.append(f"| {name} | {middle:.3f} | {spread} | {cpu:.3f} | {each} |")
    return lines


def ratio(slow: list[Turn], fast: list[Turn], clock: str = "wall") -> list[float]:
    """How many times as long `slow` took, sorted; a ratio a round. `clock` is "wall" or "cpu"."""
    pairs = zip(slow, fast, strict=True)
    return sorted(getattr(a, clock) / getattr(b, clock) for a, b in pairs)


def mark(
    about: str, ratios: list[float], least: float, style: str = "{:.2f}x", most: bool = False
) -> str:
    """A row of the table of marks: median, spread, what is wanted at least (or at `most`), whether
    it is reached."""
    middle, low, high = (
        style.format(x) for x in (statistics.median(ratios), ratios[0], ratios[-1])
    )
    found = statistics.median(ratios)
    reached = "yes" if (found <= least if most else found >= least) else "**no**"
    return f"| {about} | {middle} | {low} to {high} | {style.format(least)} | {reached} |"


MARKS = ["", "| mark | median | spread | wanted | reached |", "|---|---|---|---|---|"]


def processor() -> str:
    """The name of the processor, as Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


def conditions(rounds: int, packages: list[str]) -> str:
    """Where and with what: a line of text."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = os.getloadavg()[0]
    machine = f"{processor()}, {os.cpu_count()} cores, load {load:.1f} at the end"
    return (
        f"{date.today()}, {machine}; Python {platform.python_version()}, {versions}; medians of "
        f"n = {rounds} interleaved rounds, one thread a process."
    )


def arguments(about: str, **defaults: int | str) -> argparse.Namespace:
    """--write, and whole numbers and words by name."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def publish(
    name: str, title: str, lines: list[str], write: bool, command: str | None = None
) -> None:
    """Print a section; with `write`, put it between its marks in RESULTS.md.

    Its `command` is the script `name` with the words it was given, if not said otherwise.
    """
    given = (re.sub("=.*/.*", "=DIR", word) for word in sys.argv[1:])  # whose folders: no matter
    words = [f"{name}.py", *(word for word in given if word != "--write")]
    command = f"`python bench/{command or ' '.join(words)}`"
    section = "\n".join([f"## {title}", "", command, "", *lines])
    print(section)
    if not write:
        return
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
    old = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    new = f"{begin}\n{section}\n{end}"
    text = old.sub(lambda _: new, text) if old.search(text) else f"{text}\n{new}\n"
    RESULTS.write_text(text, encoding="utf-8")
