"""python -m launch.local CONFIG [--section.key=value ...]: a run's trainings, on one machine."""

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.job import PROGRAM, Job
from launch.screen import Screen
from launch.tasks import check_plan, plan
from shards.command import alone
from shards.errors import TrainingError, UserError
from shards.progress import duration
from toolkit.signals import REQUEUE, noting
from toolkit.world import visible_gpus

LOOK = 0.2  # seconds between two looks at the processes
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
Slot = dict[str, str]  #: the environment of those that train in it


def local(
    config: str,
    *settings: str,
    folds: str | None = None,
    seeds: str | None = None,
    grid: tuple[str, ...] = (),
    jobs: int | None = None,
    gpus: str | None = None,
    per_gpu: int = 1,
) -> None:
    """Train the folds of CONFIG on this machine, several at a time, and collect them.

    --folds=5 (or 0,2), --seeds=5 and --grid='optim.lr=1e-3,3e-4' say which; --section.key=value as
    in train.py. As many train at a time as there are GPUs (--gpus=0,1: those), times --per_gpu, or
    --jobs; without a GPU one, and the cores are shared out. The log of each is train.log in its
    folder. One that crashes is started again once. Ctrl-C has all of them save and ends with exit
    code 75, twice ends them at once with 130; the same command goes on. Exit code 1 if one failed.
    """
    if not PROGRAM.exists():
        raise UserError(f"{PROGRAM} is not there; run it from a copy of the source, not a wheel")
    planned = plan([config, *settings], folds, seeds, grid)
    check_plan([one for _, one in planned])
    all_jobs = [Job(task, one) for task, one in planned]
    slots = make_slots(jobs, gpus, per_gpu, len(all_jobs))
    stopped = run_all(all_jobs, slots)
    first = planned[0][1].run
    finish(all_jobs, Path(first.dir, first.name), stopped)


def make_slots(jobs: int | None, gpus: str | None, per_gpu: int, tasks: int) -> list[Slot]:
    """The environments in which to train side by side.

    Raises:
        UserError: numbers that do not fit each other.
    """
    for flag, value in (("jobs", jobs), ("per_gpu", per_gpu)):
        if value is not None and value < 1:
            raise UserError(f"--{flag}={value}: at least 1")
    devices = visible_gpus() if gpus is None else [word.strip() for word in gpus.split(",")]
    if len(set(devices)) < len(devices) or not all(devices):
        raise UserError(f"--gpus={gpus}: numbers, each once, as 0,1; --per_gpu=2 shares them")
    if not devices and per_gpu > 1:
        raise UserError(f"--per_gpu={per_gpu}: there is no GPU; use --jobs={per_gpu}")
    if not devices:
        return [{}] * min(jobs or 1, tasks)
    slots = [{"CUDA_VISIBLE_DEVICES": device} for device in devices * per_gpu]
    if jobs and jobs > len(slots):
        raise UserError(
            f"--jobs={jobs}: {len(devices)} GPU(s) take {len(slots)}; raise --per_gpu={per_gpu}"
        )
    return slots[: min(jobs or len(slots), tasks)]


def run_all(jobs: Sequence[Job], slots: Sequence[Slot]) -> int:
    """Train all; the exit code where a signal stopped them, else 0."""
    threads = max(1, len(os.sched_getaffinity(0)) // len(slots))
    waiting, free = deque(jobs), deque(slots)
    training: dict[Job, Slot] = {}
    screen = Screen(jobs, len(slots))
    most = max(job.config.train.threads or threads for job in jobs)
    screen.say(f"{len(jobs)} trainings, {len(slots)} at a time, {most} CPU thread(s) each")
    told, noted = 0, list[int]()
    with noting(STOP, noted):
        while training or (waiting and not noted):
            while free and waiting and not noted:
                job, slot = waiting.popleft(), free.popleft()
                gpu = slot.get("CUDA_VISIBLE_DEVICES")
                job.start(f"on GPU {gpu}" if gpu else "", slot, threads)
                training[job] = slot
                screen.tell(job, f"started {job.place}  {job.log}")
            asked = min(1, len(noted)) + (noted.count(signal.SIGINT) > 1)
            if asked > told:
                told = asked
                screen.say("stopping: each saves a checkpoint; Ctrl-C twice ends them at once")
                for job in training:
                    job.tell(signal.SIGTERM if told == 1 else signal.SIGKILL)
            time.sleep(LOOK)
            for job in [job for job in training if job.ended(bool(noted))]:
                free.append(training.pop(job))
                if job.state == "waiting":
                    waiting.appendleft(job)
                screen.tell(job, outcome(job))
            screen.show()
        screen.close()
    return (0, REQUEUE, 130)[told]


def outcome(job: Job) -> str:
    """How a process ended, and what follows."""
    score = job.score() if job.state == "done" else None
    return {
        "done": f"done in {duration(job.seconds)}"
        + (f", accuracy {100 * score:.1f} %" if score is not None else ""),
        "stopped": "stopped, with what it had saved",
        "waiting": f"{job.why}; it is started again",
        "failed": f"failed, {job.why}",
    }[job.state]


def finish(jobs: Sequence[Job], run: Path, stopped: int) -> None:
    """Collect what there is, name what is not, and end with the exit code that says so."""
    failed = [job for job in jobs if job.state == "failed"]
    done = sum(job.state == "done" for job in jobs)
    if stopped:
        print(f"stopped: {done} of {len(jobs)} done; the same command goes on", file=sys.stderr)
        sys.exit(stopped)
    if done:
        from toolkit.__main__ import collect

        collect(str(run))
    if failed:
        names = "; ".join(f"{job.name} ({job.why})" for job in failed)
        raise TrainingError(f"{len(failed)} of {len(jobs)} trainings failed: {names}")


main = partial(alone, "launch.local", local)  #: of words, or those of the command line: exit code

if __name__ == "__main__":
    logging.getLogger("shards").setLevel(logging.WARNING)
    raise SystemExit(main())
