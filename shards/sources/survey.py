"""What an old set of spectrograms holds, before anything is written.

Shapes: `M` mel bands, `T` frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.index import SPLITS
from shards.labels import classes_of, names
from shards.plan import check_left
from shards.progress import with_progress
from shards.recording import Reject
from shards.sources.clips import Clip, from_tables
from shards.sources.pickles import from_pickles

LEAST_RANGE, LARGEST = 20.0, 300.0  # dB; a set outside of that is hardly one in dB
HALF_MAX = 65504.0  # of float16


@dataclass(frozen=True)
class Survey:
    """What the arrays of an old set are, before anything is written."""

    shape: tuple[int, int]  # (M, T) as it will be stored
    low: float
    high: float
    relative: bool  # every clip's maximum is 0: dB below its own loudest cell
    rejected: list[Reject]

    def scale(self, asked: str | None) -> str:
        """`db` or `power`: what the values are, or are said to be.

        Raises:
            UserError: they look like neither, or cannot be what was said.
        """
        found = f"values from {self.low:.4g} to {self.high:.4g}"
        if asked not in (None, "db", "power"):
            raise UserError(f"--scale={asked}: db or power")
        if asked == "power" and self.low < 0:
            raise UserError(f"--scale=power: {found}, and power is never negative; --scale=db?")
        if asked != "power" and max(-self.low, self.high) > HALF_MAX:
            raise UserError(f"{found}: too large for dB in float16; is it --scale=power?")
        if asked is None and self.low >= 0:
            raise UserError(f"{found}, none negative: say --scale=power if linear, or --scale=db")
        if asked is None and (
            self.high - self.low < LEAST_RANGE or max(-self.low, self.high) > LARGEST
        ):
            raise UserError(f"{found}: hardly dB (normalised?); --scale=db takes them as they are")
        return asked or "db"


def read_clips(old: Path) -> tuple[list[Clip], str]:
    """The clips of the set in `old`, and by what file it was known.

    Raises:
        UserError: none of the three kinds, or one that does not hold together.
    """
    parts = {old / f"{part}.csv": part for part in SPLITS if (old / f"{part}.csv").is_file()}
    if (old / "features.pkl").is_file():
        clips, kind = from_pickles(old), "features.pkl"
    elif (old / "metadata.csv").is_file():
        clips, kind = from_tables(old, {old / "metadata.csv": None}), "metadata.csv"
    elif parts:
        clips, kind = from_tables(old, parts), ", ".join(file.name for file in parts)
    else:
        raise UserError(
            f"{old}: no set to convert; expected metadata.csv, train.csv or features.pkl in it"
        )
    paths: set[str] = set()
    for clip in clips:
        if clip.path in paths:
            raise UserError(f"{old}, {kind}: {clip.path!r} is there twice; keep one row of it")
        for what in ("label", "split", "fold"):
            wanted = what == "label" or bool(getattr(clips[0], what))
            if wanted != all(names(getattr(clip, what) or "") or [""]):
                lacking = clip.path if wanted else clips[0].path
                raise UserError(f"{old}, {kind}: {lacking!r} has no {what}; fill it in")
        paths.add(clip.path)
    classes = classes_of(clip.label for clip in clips)
    if len(classes) < 2:
        raise UserError(f"{old}, {kind}: {len(classes)} classes; expected at least 2")
    return clips, kind


def read_array(clip: Clip) -> np.ndarray:
    """(M, T) float64 of a clip; a ValueError says why there is none."""
    array = clip.load()
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array.squeeze(0 if len(array) == 1 else 2)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise ValueError(f"{array.dtype} of shape {array.shape}, expected numbers (mels, frames)")
    if not np.isfinite(array).all():
        raise ValueError("values that are not finite")
    return array.astype(np.float64)


def look(clips: Sequence[Clip], frames: int | None) -> Survey:
    """Read every array once.

    Raises:
        UserError: no array can be used, or one has another shape than the first.
    """
    rejected: list[Reject] = []
    left: set[str] = set()
    first, shape = "", (0, 0)
    low, high, relative = np.inf, -np.inf, True
    for clip in with_progress(clips, "look", len(clips), "clips"):
        try:
            array = read_array(clip)
        except ValueError as error:
            rejected.append(Reject(clip.path, str(error), clip.label))
            continue
        mels, length = array.shape[0], frames or array.shape[1]
        if first and (mels, length) != shape:
            raise UserError(
                f"{clip.path!r} is {array.shape[0]} x {array.shape[1]}, {first!r} {shape[0]} x "
                f"{shape[1]}; one shape is needed, --frames=N crops and pads the frames"
            )
        left.update(names(clip.label))
        first, shape = first or clip.path, (mels, length)
        low, high = min(low, array.min()), max(high, array.max())
        relative = relative and abs(array.max()) < 1e-2
    check_left(left, rejected)
    return Survey(shape, float(low), float(high), relative, rejected)


def told(survey: Survey, scale: str) -> str:
    """What the values were, for people."""
    text = f"{survey.low:.4g} to {survey.high:.4g}, "
    if scale == "power":
        return text + "linear power, stored in dB relative to 1.0"
    relative = "each clip relative to its own maximum" if survey.relative else "reference unknown"
    return text + f"taken as dB, {relative}"
