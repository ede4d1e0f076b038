"""python -m launch.cancel RUN: stop all jobs of a submitted run; what is trained stays."""

from functools import partial
from pathlib import Path

from launch import slurm
from launch.submission import submissions
from shards.command import alone


def cancel(run: str) -> None:
    """Cancel whatever RUN has in the queue, of all its submissions, the last jobs of a chain first.

    Trainings write a checkpoint if Slurm leaves them the time (KillWait, 30 s by default), and go
    on from the newest when the run is submitted again.
    """
    jobs = [job for found in submissions(Path(run)) for job in reversed(found.jobs.values())]
    waiting = {task.split("_")[0] for task in slurm.queue(jobs)}
    alive = [job for job in jobs if job in waiting]
    for job in alive:  # one by one: a job that waits for another must not start in between
        slurm.run("scancel", job)
    print(f"{run}: cancelled {', '.join(alive)}" if alive else f"{run}: nothing in the queue")


main = partial(alone, "launch.cancel", cancel)  #: of words, or those of the command line: exit code

if __name__ == "__main__":
    raise SystemExit(main())
