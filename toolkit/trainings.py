"""Which trainings there are below a run's folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

#: GRID/seed-S/fold-F below the run's folder, as launch.tasks names them; any may be absent.
TRAINING = re.compile(
    r"(?:(?P<grid>[^/]*=[^/]*)/)?(?:seed-(?P<seed>\d+)/)?(?:fold-(?P<fold>\d+)/)?"
)
LEFT = ("environment.json", "train.log", "scores.json")  #: by a training that was begun


class Training(NamedTuple):
    """A training that was begun, and where it stands in the run."""

    folder: Path
    grid: str  #: what its settings differ in; "" without a grid
    seed: int | None

    @property
    def finished(self) -> bool:
        """Whether it has been scored."""
        return (self.folder / "scores.json").exists()


def find_trainings(run: Path) -> list[Training]:
    """All trainings below a run's folder, in the order of settings, seeds and folds."""
    globs = [f"{depth}{name}" for depth in ("", "*/", "*/*/", "*/*/*/") for name in LEFT]
    found = []
    for folder in {file.parent for pattern in globs for file in run.glob(pattern)}:
        match = TRAINING.fullmatch("".join(f"{part}/" for part in folder.relative_to(run).parts))
        if match:
            seed = int(match["seed"]) if match["seed"] else None
            found.append((match["grid"] or "", seed, int(match["fold"] or 0), folder))
    found.sort(key=lambda one: (one[0], one[1] or 0, one[2]))
    return [Training(folder, grid, seed) for grid, seed, _, folder in found]


def unfinished(trainings: Sequence[Training], run: Path) -> list[str]:
    """The trainings that were begun and not scored, by their folder below the run's."""
    return [str(one.folder.relative_to(run)) for one in trainings if not one.finished]
