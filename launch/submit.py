"""python -m launch.submit CONFIG [--section.key=value ...]: a config to a report, on Slurm."""

import inspect
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from launch import scripts, slurm, submission
from launch.scripts import Place, Script
from launch.site import Site, read_site
from launch.tasks import check_plan, plan
from shards.command import alone
from shards.errors import TrainingError, UserError
from shards.remote import is_url
from toolkit.schema import Config

log = logging.getLogger(__name__)

#: Settings of a build that a config may state, too.
MEL = ("sample_rate", "segment_seconds", "n_mels", "n_fft", "hop_length", "fmin", "fmax")


def submit(
    config: str,
    *settings: str,
    folds: str | None = None,
    seeds: str | None = None,
    grid: tuple[str, ...] = (),
    audio: str | None = None,
    parts: int = 1,
    build: str = "",
    dry_run: bool = False,
    no_snapshot: bool = False,
    **site: Any,
) -> None:
    """Submit the trainings of CONFIG to Slurm, a task each, and the job that collects them.

    --folds=5 (or 0,2), --seeds=5 and --grid='optim.lr=1e-3,3e-4' say which; --section.key=value as
    in train.py. With --audio=AUDIO the shard set is built before, in --parts=N tasks, by what
    the config says of it and --build='--overlap=0.5 ...'. --dry_run prints the scripts and submits
    nothing. Code and config are kept in the run's folder as they are now, and that is what runs;
    --no_snapshot runs what is there when a job starts. All other flags are what the cluster wants;
    ~/.config/wavefold/slurm.yaml has the same keys. docs/cluster.md has them.
    """
    planned = plan([config, *settings], folds, seeds, grid)
    asked, first = read_site(site), planned[0][1]
    if not audio:
        check_plan([one for _, one in planned], asked.nodes * max(1, asked.gpus))
    run = Path(first.run.dir, first.run.name)
    folder = submission.new_folder(run.absolute())
    place = Place(
        cwd=str(Path.cwd()),
        folder=str(folder),
        code=str(submission.ROOT if no_snapshot else folder / "code"),
        config=str(Path(config).absolute() if no_snapshot else folder / "config.yaml"),
        run=str(run),
        python=sys.executable,
    )
    tasks = [task for task, _ in planned]
    chain = shard_jobs(asked, place, first, audio, parts, build)
    chain.append(scripts.train(asked, place, tasks, settings))
    if chain[:-1]:
        chain[-1] = Script("train", chain[-1].text, "merge", "afterok")
    chain.append(scripts.collect(asked, place, len(tasks)))
    if dry_run:
        show(chain, folder)
        return
    names = [task.name for task in tasks]
    ids = send(chain, folder, names, None if no_snapshot else Path(config))
    for line in farewell(run, ids, len(tasks)):
        print(line)


def shard_jobs(
    site: Site, place: Place, config: Config, audio: str | None, parts: int, build: str
) -> list[Script]:
    """The jobs before the training: none where the shards are there."""
    out = config.data.shards
    if not audio:
        return []
    if not isinstance(out, str) or is_url(out):
        raise UserError(f"--audio={audio}: builds one set in a folder, and data.shards is {out}")
    if not Path(audio).exists() and not is_url(audio):
        raise UserError(f"--audio={audio}: no such folder or table")
    found = {name: getattr(config.data, name) for name in MEL}
    stated = [f"--{name}={value}" for name, value in found.items() if value is not None]
    return scripts.shards(site, place, audio, out, " ".join([*stated, build]), parts)


def show(chain: Sequence[Script], folder: Path) -> None:
    """Print each script below the command that would submit it."""
    ids = {script.name: script.name.upper() for script in chain}
    for script in chain:
        words = ["sbatch", *script.dependency(ids), str(folder / f"{script.name}.sbatch")]
        print(f"# {shlex.join(words)}\n{script.text}")


def send(
    chain: Sequence[Script], folder: Path, names: Sequence[str], config: Path | None
) -> dict[str, str]:
    """Write the scripts, keep code and config if `config` is given, submit; the jobs' ids.

    Raises:
        UserError: the disk is full, or sbatch refused one; those before it were taken back.
    """
    slurm.run("sbatch", "--version")
    ids: dict[str, str] = {}
    try:
        folder.mkdir(parents=True)
        (folder.parent.parent / "logs").mkdir(exist_ok=True)
        if config:
            submission.keep_code(folder)
            submission.keep_config(folder, Path(config))
        for script in chain:
            file = folder / f"{script.name}.sbatch"
            file.write_text(script.text, encoding="utf-8")
            ids[script.name] = slurm.submit(str(file), script.dependency(ids))
        submission.write(folder, ids, names)
    except (OSError, TrainingError) as error:
        if ids:
            with suppress(TrainingError):
                slurm.run("scancel", *reversed(ids.values()))
        shutil.rmtree(folder, ignore_errors=True)
        run = folder.parent.parent
        for place in (run / "jobs", run / "logs", run):
            with suppress(OSError):  # it holds something
                place.rmdir()
        each = error.args[0] if isinstance(error, shutil.Error) else [[str(error)]]
        raise UserError(f"{each[0][-1]}; nothing stays submitted") from None
    return ids


def farewell(run: Path, ids: dict[str, str], tasks: int) -> list[str]:
    """What to type next."""
    quoted = shlex.quote(str(run))
    lines = [f"{name:<8} {job:>8}  {quoted}/logs/{name}-{job}*.log" for name, job in ids.items()]
    return [
        *lines,
        f"{tasks} training{'s' * (tasks > 1)}; follow them: python -m launch.status {quoted}",
        f"their logs: tail -F {quoted}/logs/*; stop all: python -m launch.cancel {quoted}",
    ]


def signature() -> inspect.Signature:
    """That of `submit`, with the fields of Site as flags."""
    own = [p for p in inspect.signature(submit).parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f.type)
        for f in fields(Site)
    ]
    return inspect.Signature([*own, *flags])


submit.__signature__ = signature()  # type: ignore[attr-defined]


main = partial(alone, "launch.submit", submit)  #: of words, or those of the command line: exit code

if __name__ == "__main__":
    raise SystemExit(main())
