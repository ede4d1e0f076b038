"""predictions.csv: what a model said of every segment and every recording.

Shapes: `N` rows, `K` classes.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import ShardSet, write_atomic
from toolkit.metrics import FLOOR, pool

LEVELS = ("segment", "recording")
COLUMNS = ("level", "recording", "group", "start", "fold", "label", "predicted")


@dataclass(frozen=True)
class Predictions:
    """Rows of predictions.csv as arrays; texts are object arrays: one long path pads no other."""

    classes: tuple[str, ...]
    level: np.ndarray  # (N,) "segment" or "recording"
    recording: np.ndarray  # (N,) path as given to `shards build`
    group: np.ndarray  # (N,)
    start: np.ndarray  # (N,) float64, seconds; NaN at level recording
    fold: np.ndarray  # (N,) name of the fold, or ""
    labels: np.ndarray  # (N,) int64
    predicted: np.ndarray  # (N,) int64
    probabilities: np.ndarray  # (N, K) float64

    def at(self, level: str) -> "Predictions":
        """The rows of one level, in their order."""
        keep = self.level == level
        arrays = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "classes"}
        return replace(self, **arrays)

    @property
    def log_probs(self) -> np.ndarray:
        """(N, K) log-probabilities, none below `metrics.FLOOR`."""
        return np.log(np.maximum(self.probabilities, np.exp(FLOOR)))


def of_samples(
    shard_set: ShardSet, numbers: np.ndarray, log_probs: np.ndarray, fold: str | None
) -> Predictions:
    """Both levels of the samples `numbers` (N,) from their `log_probs` (N, K), ordered by number.

    A recording's log-probabilities are the mean of its segments', renormalised.
    """
    order = np.argsort(numbers, kind="stable")
    rows, log_probs = shard_set.rows(numbers[order]), log_probs[order]
    pooled, recordings = pool(log_probs, rows["recording"])
    first = np.unique(rows["recording"], return_index=True)[1]
    both = np.concatenate([log_probs, pooled])
    place = np.concatenate([rows["recording"], recordings])
    known = list(shard_set.recordings())
    return Predictions(
        classes=tuple(shard_set.class_names),
        level=texts(["segment"] * len(rows) + ["recording"] * len(recordings)),
        recording=texts([known[i]["path"] for i in place]),
        group=texts([str(known[i].get("group") or "") for i in place]),
        start=np.concatenate([rows["start"], np.full(len(recordings), np.nan)]),
        fold=texts([fold or ""] * len(place)),
        labels=np.concatenate([rows["label"], rows["label"][first]]).astype(np.int64),
        predicted=both.argmax(axis=1),
        probabilities=np.exp(both),
    )


def texts(values: Sequence[str]) -> np.ndarray:
    """An object array of strings; numpy's own text type pads each to the longest."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def join(parts: Sequence[Predictions]) -> Predictions:
    """The rows of all parts, one after the other; they have to have the same classes."""
    names = [f.name for f in fields(Predictions) if f.name != "classes"]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Predictions(classes=parts[0].classes, **arrays)


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Write predictions.csv whole or not at all; probabilities with 9 significant digits."""
    text = io.StringIO()
    # Only with the terminator \r\n does csv quote both a \r and a \n inside a name; \n is written.
    writer = csv.writer(SimpleNamespace(write=lambda row: text.write(row[:-2] + "\n")))
    writer.writerow([*COLUMNS, *(f"p_{name}" for name in predictions.classes)])
    writer.writerows(rows_of(predictions))
    # A file name that is not UTF-8 keeps its bytes.
    write_atomic(file, text.getvalue().encode("utf-8", "surrogateescape"))


def rows_of(p: Predictions) -> Iterator[list[str]]:
    """The rows of predictions.csv as text."""
    for i in range(len(p.labels)):
        start = "" if np.isnan(p.start[i]) else f"{p.start[i]:.9g}"
        names = (p.classes[p.labels[i]], p.classes[p.predicted[i]])
        probabilities = [f"{value:.9g}" for value in p.probabilities[i].tolist()]
        yield [p.level[i], p.recording[i], p.group[i], start, p.fold[i], *names, *probabilities]


def read_predictions(file: Path) -> Predictions:
    """Read predictions.csv.

    Raises:
        UserError: the file is missing, or damaged; names the line.
    """
    try:
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            try:
                header = next(reader, [])
                classes = tuple(name.removeprefix("p_") for name in header[len(COLUMNS) :])
                if tuple(header[: len(COLUMNS)]) != COLUMNS or not classes:
                    raise ValueError(f"columns are not {','.join(COLUMNS)},p_CLASS...")
                number_of = {name: number for number, name in enumerate(classes)}
                rows = [parse(row, number_of) for row in reader]
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{file}: line {max(1, reader.line_num)}: {error}; "
                    "evaluate the run again or copy the file again"
                ) from None
    except FileNotFoundError:
        raise UserError(f"{file}: missing; evaluate the run again") from None
    return from_rows(classes, rows)


def from_rows(classes: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> Predictions:
    """Parsed rows as arrays; a row has the fields of Predictions, in their order."""
    columns = list(zip(*rows, strict=True)) or [()] * (len(COLUMNS) + 1)
    level, recording, group, start, fold, labels, predicted, probabilities = columns
    return Predictions(
        classes=classes,
        level=texts(level),
        recording=texts(recording),
        group=texts(group),
        start=np.array(start, np.float64),
        fold=texts(fold),
        labels=np.array(labels, np.int64),
        predicted=np.array(predicted, np.int64),
        probabilities=np.array(probabilities, np.float64).reshape(-1, len(classes)),
    )


def parse(row: Sequence[str], number_of: dict[str, int]) -> tuple[object, ...]:
    """One row, its texts as numbers; a ValueError tells what is wrong with it."""
    if len(row) != len(COLUMNS) + len(number_of):
        raise ValueError(f"{len(row)} values, expected {len(COLUMNS) + len(number_of)}")
    level, recording, group, start, fold, label, predicted = row[: len(COLUMNS)]
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is neither segment nor recording")
    for name in (label, predicted):
        if name not in number_of:
            raise ValueError(f"class {name!r} has no column p_{name}")
    probabilities = [float(text) for text in row[len(COLUMNS) :]]
    # A row cut inside its last number is found by its sum.
    if not abs(sum(probabilities) - 1) < 1e-4 or min(probabilities) < 0:
        raise ValueError(f"probabilities sum to {sum(probabilities):.6g}, expected 1")
    seconds = float(start) if start else float("nan")
    numbers = (number_of[label], number_of[predicted])
    return level, recording, group, seconds, fold, *numbers, probabilities
