"""The command line `python -m toolkit`: what to do with runs once they are trained."""

from functools import partial
from pathlib import Path
from typing import Any

from shards.command import Commands
from shards.command import main as run_command
from shards.errors import TrainingError


def collect(run: str, *, bootstrap_unit: str = "auto", expect: int | None = None) -> None:
    """Join the folds of a run, its seeds and its settings: mean, spread, intervals, report.html.

    Writes folds.json, folds.md, predictions.csv, confusion_matrix.png and report.html into RUN.
    The intervals resample whole groups where recordings have groups, else recordings, or what
    --bootstrap_unit=recording|group says. Of several seeds each has these files, and RUN seeds.md;
    of a grid each setting has them, and RUN sweep.md and sweep.png, sorted by the validation part.
    With --expect=N fewer finished trainings than N are exit code 1, once all that is written.
    """
    from toolkit import folds, seeds, sweep, tables
    from toolkit.results import find_trainings, unfinished

    folder, unit = Path(run), bootstrap_unit
    begun = find_trainings(folder)
    several = [one for one in begun if one.grid or one.seed is not None]
    page: Any
    found: Any
    if not any(one.finished for one in several):
        page, found, file = tables, folds.collect(folder, unit), "report.html"
    elif any(one.grid for one in several):
        page, found, file = sweep, sweep.collect_sweep(folder, several, unit), "sweep.md"
    else:
        page, found, file = seeds, seeds.collect_seeds(folder, several, unit), "seeds.md"
    print(page.table(found), end="\n\n")
    for line in page.notices(found):
        print(f"note: {line}")
    print(page.score_line(found), folder / file, sep="\n")
    done = sum(one.finished for one in begun)
    if expect and done < expect:
        names = ", ".join(unfinished(begun, folder)) or "the others never began"
        raise TrainingError(f"{run}: {done} of {expect} trainings are finished; see {names}")


def compare(first: str, second: str, *, out: str = "compare", bootstrap_unit: str = "auto") -> None:
    """Test the difference of two runs on the same recordings: McNemar, paired bootstrap, a picture.

    FIRST and SECOND are runs, or folds of runs. Writes OUT.md and OUT.png. The bootstrap draws
    whole groups where recordings have groups, or what --bootstrap_unit=recording|group says.
    """
    from toolkit import compare as comparison

    found = comparison.compare(Path(first), Path(second), bootstrap_unit)
    print(comparison.markdown(found))
    print(*comparison.write(found, Path(out)), sep="\n")


def report(run: str) -> None:
    """Write report.html of a run, or of one fold of it, again from what lies there."""
    from toolkit.report import rebuild

    print(rebuild(Path(run)))


def show_augment(config: str, *overrides: str, out: str = "", samples: int = 4) -> None:
    """Draw what the augmentation of a config does to its first batch, before and after: a PNG.

    A row for each augmentation that is on, alone, and one for all together; --out=PNG says where,
    by default beside the run. Other values: show_augment CONFIG -- --augment.gain_db=12
    """
    from toolkit.config import load
    from toolkit.gallery import draw_augmentation

    values = load([config, *overrides])
    beside = Path(values.run.dir) / f"{values.run.name}-augment.png"
    print(draw_augmentation(values, Path(out) if out else beside, samples))


def lr_find(
    config: str,
    *settings: str,
    out: str = "lr_find.png",
    steps: int = 100,
    lowest: float = 1e-6,
    highest: float = 1.0,
) -> None:
    """Draw the loss against a rising learning rate, and suggest a rate for CONFIG.

    Fresh weights are trained --steps steps, each at a higher rate, from --lowest to --highest; the
    suggested rate is where the smoothed loss falls fastest. --section.key=value as in train.py. The
    run's folder is not touched.
    """
    from toolkit.config import load
    from toolkit.world import yield_cores

    loaded = load([config, *settings])
    yield_cores()
    from toolkit.lr_range import find

    rate = find(loaded, Path(out), steps, lowest, highest)
    print(f"{out}: steepest descent at --optim.lr={rate:.1e}")


def models(*config: str) -> None:
    """Tabulate the models: parameters, FLOPs and memory for the input of CONFIG, if there is one.

    Without CONFIG: for 128 bands x 250 frames (8 s at 16 kHz) and 2 classes. The config's own model
    is counted with its settings, and --model.name=timm:resnet18 counts one that is not listed.
    """
    from toolkit.cost import table

    print(table(config))


COMMANDS: Commands = {
    command.__name__: command
    for command in (collect, compare, report, show_augment, lr_find, models)
}


main = partial(run_command, "python -m toolkit", COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
