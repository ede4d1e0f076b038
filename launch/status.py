"""python -m launch.status RUN: where each training of a submitted run stands."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from launch import slurm
from launch.submission import Submission, submissions
from shards.command import alone
from toolkit.results import last_words, read_config, read_records
from toolkit.signals import MARKER, REQUEUE

HEAD = ("task", "state", "node", "step", "epoch", "samples/s", "left", "limit", "restarts", "log")
TAIL = 1 << 16  #: bytes of metrics.jsonl that are read: the last lines


def status(run: str) -> None:
    """Tabulate the trainings of RUN, and the jobs around them.

    `left` is what the training needs at its rate, `limit` what its job has until its time limit.
    """
    found = submissions(Path(run))[-1]
    jobs = [job for job in found.jobs.values() if job]
    queue = slurm.queue(jobs)
    ended = slurm.accounted(jobs)
    train = found.jobs.get("train", "")
    rows = []
    for number, name in enumerate(found.tasks):
        task = f"{train}_{number}" if name else train
        rows.append(row(Path(run, name), name or "train", task, queue.get(task), ended.get(task)))
    for line in table([HEAD, *rows]):
        print(line)
    for line in others(found, queue, ended):
        print(line)


def others(
    found: Submission, queue: Mapping[str, Mapping[str, str]], ended: Mapping[str, str]
) -> list[str]:
    """A line for each job that trains nothing."""
    lines = []
    for name, job in found.jobs.items():
        tasks = [told for task, told in queue.items() if task.split("_")[0] == job]
        states = sorted({state_of(told) for told in tasks}) or [ended.get(job, "ended").lower()]
        if name != "train":
            lines.append(f"{name} ({job}): {', '.join(states)}")
    return lines


def state_of(told: Mapping[str, str]) -> str:
    """Slurm's state of a job in the queue, with the reason for which it waits."""
    reason = told["reason"] if told["state"] == "PENDING" and told["reason"] != "None" else ""
    return told["state"].lower() + (f" ({reason})" if reason else "")


def row(
    folder: Path, name: str, task: str, told: Mapping[str, str] | None, ended: str | None
) -> list[str]:
    """One training: what Slurm tells of it, and what it has left in its folder."""
    lives = read_lives(folder, task)
    place = progress(folder)
    state = state_of(told) if told else after(folder, lives, ended)
    node = told["node"] if told and told["node"] else (lives[-1][2] if lives else "")
    begun = sum(words[3] == "begin" for words in lives)
    running = told is not None and told["state"] == "RUNNING"
    left, limit = (place["left"], told["limit"]) if told and running else ("", "")
    log = last_words(folder, 1)
    return [
        name, state, node, place["step"], place["epoch"], place["rate"], left, limit,
        str(max(0, begun - 1)), log[0][:60] if log else "",
    ]  # fmt: skip


def read_lives(folder: Path, task: str) -> list[list[str]]:
    """What the batch script has noted of one task: time, task, node, begin or end, and of what."""
    try:
        lines = (folder / "lives.txt").read_text().splitlines()
    except OSError:
        return []
    return [words for line in lines if len(words := line.split()) == 5 and words[1] == task]


def after(folder: Path, lives: Sequence[Sequence[str]], ended: str | None) -> str:
    """The state of a training that is not in the queue."""
    if (folder / "scores.json").exists():
        return "done"
    if ended:
        return ended.lower()
    if not lives:
        return "not begun"
    if (folder / MARKER).exists() or lives[-1][4] == str(REQUEUE):
        return "stopped"
    return f"failed ({lives[-1][4]})" if lives[-1][3] == "end" else "killed"


def progress(folder: Path) -> dict[str, str]:
    """Step, epoch, samples a second and time left, as metrics.jsonl has them."""
    lines = read_records(folder / "metrics.jsonl", TAIL)
    told = dict.fromkeys(("step", "epoch", "rate", "left"), "")
    if not lines:
        return told
    last = lines[-1]
    told |= {"step": str(last["step"]), "epoch": str(last["epoch"])}
    steps = [line for line in lines if line["kind"] == "train"][-20:]
    if len(steps) > 1 and steps[-1]["seconds"] > steps[0]["seconds"]:
        span = steps[-1]["seconds"] - steps[0]["seconds"]
        rate = (steps[-1]["samples"] - steps[0]["samples"]) / span
        told["rate"] = f"{rate:.0f}"
        ends = [line for line in lines if line["kind"] == "epoch"]
        train = read_config(folder / "config.yaml")["train"]
        if ends and rate > 0:
            an_epoch = ends[-1]["samples"] / ends[-1]["epoch"]
            whole = min(
                an_epoch * train["epochs"], (train["max_steps"] or 1e18) * train["batch_size"]
            )
            told["left"] = clock(max(0.0, whole - last["samples"]) / rate)
    return told


def clock(seconds: float) -> str:
    """`1-02:03:04`, as Slurm writes durations."""
    days, rest = divmod(round(seconds), 86400)
    return (f"{days}-" if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width; those that say nothing are left out."""
    columns = [c for c in zip(*rows, strict=True) if any(c[1:]) or c[0] == "state"]
    widths = [max(map(len, column)) for column in columns]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True))
             for row in zip(*columns, strict=True))  # fmt: skip
    return [line.rstrip() for line in lines]


main = partial(alone, "launch.status", status)  #: of words, or those of the command line: exit code

if __name__ == "__main__":
    raise SystemExit(main())
