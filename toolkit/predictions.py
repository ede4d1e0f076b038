"""predictions.csv: what a model said of every segment and every recording.

Shapes: `N` rows, `K` classes.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import ShardSet, write_atomic
from shards.labels import SEPARATOR
from toolkit import tagging
from toolkit.decision import decide
from toolkit.metrics import FLOOR, pool

LEVELS = ("segment", "recording")
COLUMNS = ("level", "recording", "group", "start", "fold", "label", "predicted")
SEVERAL = (*COLUMNS[:5], "labels", "predicted")  # the same, where samples have several classes
ATTACK = "attack"  # a column behind the group, where the shard set knows of attacks


@dataclass(frozen=True)
class Predictions:
    """Rows of predictions.csv as arrays; texts are object arrays: one long path pads no other."""

    classes: tuple[str, ...]
    level: np.ndarray  # (N,) "segment" or "recording"
    recording: np.ndarray  # (N,) path as given to `shards build`
    group: np.ndarray  # (N,)
    attack: np.ndarray  # (N,) "" where there is none
    start: np.ndarray  # (N,) float64, seconds; NaN at level recording
    fold: np.ndarray  # (N,) name of the fold, or ""
    labels: np.ndarray  # (N,) int64, or (N, K) bool where samples have several classes
    predicted: np.ndarray  # likewise
    probabilities: np.ndarray  # (N, K) float64

    def at(self, level: str) -> "Predictions":
        """The rows of one level, in their order."""
        return self.take(self.level == level)

    def take(self, rows: np.ndarray) -> "Predictions":
        """Some rows, by a mask or by their places."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "classes"}
        return replace(self, **arrays)

    @property
    def log_probs(self) -> np.ndarray:
        """(N, K) log-probabilities, none below `metrics.FLOOR`."""
        # Of several classes each has its own complement, which 9 digits tell down to about 1e-10.
        most = 1 - 1e-10 if self.is_multi_label else 1.0
        return np.log(np.clip(self.probabilities, np.exp(FLOOR), most))

    @property
    def is_multi_label(self) -> bool:
        """Whether rows may have several classes."""
        return self.labels.ndim == 2


def truth(shard_set: ShardSet, numbers: np.ndarray) -> np.ndarray:
    """The labels of samples as `scores` takes them: (N,), or (N, K) bool if they have several."""
    several = shard_set.is_multi_label
    return shard_set.targets(numbers) if several else shard_set.rows(numbers)["label"]


def of_samples(
    shard_set: ShardSet,
    numbers: np.ndarray,
    log_probs: np.ndarray,
    fold: str | None,
    decision: Mapping[str, Any] | None = None,
) -> Predictions:
    """Both levels of the samples `numbers` (N,) from their `log_probs` (N, K), ordered by number.

    A recording's log-probabilities are the mean of its segments', renormalised. `decision` says
    from which probability on a class is predicted; see `decision.decide`.
    """
    order = np.argsort(numbers, kind="stable")
    rows, log_probs = shard_set.rows(numbers[order]), log_probs[order]
    labels = truth(shard_set, numbers[order])
    pooled, recordings = (tagging.pool if labels.ndim == 2 else pool)(log_probs, rows["recording"])
    first = np.unique(rows["recording"], return_index=True)[1]
    both = np.concatenate([log_probs, pooled])
    place = np.concatenate([rows["recording"], recordings])
    known = list(shard_set.recordings())
    return Predictions(
        classes=tuple(shard_set.class_names),
        level=texts(["segment"] * len(rows) + ["recording"] * len(recordings)),
        recording=texts([known[i]["path"] for i in place]),
        group=texts([str(known[i].get("group") or "") for i in place]),
        attack=texts([str(known[i].get("attack") or "") for i in place]),
        start=np.concatenate([rows["start"], np.full(len(recordings), np.nan)]),
        fold=texts([fold or ""] * len(place)),
        labels=np.concatenate([labels, labels[first]]).astype(bool if labels.ndim == 2 else int),
        predicted=decide(both, shard_set.class_names, decision, labels.ndim == 2),
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
    columns = list(SEVERAL if predictions.is_multi_label else COLUMNS)
    attacks = bool((predictions.attack != "").any())
    columns[3:3] = [ATTACK] * attacks
    writer.writerow([*columns, *(f"p_{name}" for name in predictions.classes)])
    writer.writerows(row[:3] + row[4 - attacks :] for row in rows_of(predictions))
    # A file name that is not UTF-8 keeps its bytes.
    write_atomic(file, text.getvalue().encode("utf-8", "surrogateescape"))


def rows_of(p: Predictions) -> Iterator[list[str]]:
    """The rows of predictions.csv as text."""
    for i in range(len(p.labels)):
        start = "" if np.isnan(p.start[i]) else f"{p.start[i]:.9g}"
        names = [names_of(found[i], p.classes) for found in (p.labels, p.predicted)]
        probabilities = [f"{value:.9g}" for value in p.probabilities[i].tolist()]
        about = [p.level[i], p.recording[i], p.group[i], p.attack[i], start, p.fold[i]]
        yield [*about, *names, *probabilities]


def names_of(label: np.ndarray, classes: Sequence[str]) -> str:
    """A class by its number, or those that (K,) bool says, between semicolons."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    return SEPARATOR.join(classes[k] for k in np.flatnonzero(label).tolist())


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
                attacks = header[3:4] == [ATTACK]
                header[3:4] = [] if attacks else header[3:4]
                classes = tuple(name.removeprefix("p_") for name in header[len(COLUMNS) :])
                several = tuple(header[: len(COLUMNS)]) == SEVERAL
                if not (several or tuple(header[: len(COLUMNS)]) == COLUMNS) or not classes:
                    raise ValueError(f"columns are not {','.join(COLUMNS)},p_CLASS...")
                number_of = {name: number for number, name in enumerate(classes)}
                rows = [parse(row, number_of, several, attacks) for row in reader]
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{file}: line {max(1, reader.line_num)}: {error}; "
                    "evaluate the run again or copy the file again"
                ) from None
    except FileNotFoundError:
        raise UserError(f"{file}: missing; evaluate the run again") from None
    return from_rows(classes, rows, several)


def from_rows(
    classes: tuple[str, ...], rows: Sequence[Sequence[Any]], several: bool
) -> Predictions:
    """Parsed rows as arrays; a row has the fields of Predictions, in their order."""
    columns = list(zip(*rows, strict=True)) or [()] * (len(COLUMNS) + 2)
    level, recording, group, attack, start, fold, labels, predicted, probabilities = columns
    kind: Any = bool if several else np.int64
    return Predictions(
        classes=classes,
        level=texts(level),
        recording=texts(recording),
        group=texts(group),
        attack=texts(attack),
        start=np.array(start, np.float64),
        fold=texts(fold),
        labels=np.array(labels, kind),
        predicted=np.array(predicted, kind),
        probabilities=np.array(probabilities, np.float64).reshape(-1, len(classes)),
    )


def parse(
    row: list[str], number_of: dict[str, int], several: bool, attacks: bool
) -> tuple[object, ...]:
    """One row, its texts as numbers, `several` classes as one bool a class; a ValueError tells what
    is wrong with it."""
    expected = len(COLUMNS) + attacks + len(number_of)
    if len(row) != expected:
        raise ValueError(f"{len(row)} values, expected {expected}")
    attack = row.pop(3) if attacks else ""
    level, recording, group, start, fold, label, predicted = row[: len(COLUMNS)]
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is neither segment nor recording")
    split = [[n for n in text.split(SEPARATOR) if n] if several else [text]
             for text in (label, predicted)]  # fmt: skip
    for name in [*split[0], *split[1]]:
        if name not in number_of:
            raise ValueError(f"class {name!r} has no column p_{name}")
    probabilities = [float(text) for text in row[len(COLUMNS) :]]
    # A row cut inside its last number is found by its sum.
    if several:
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError("a probability is not within 0 and 1")
    elif not abs(sum(probabilities) - 1) < 1e-4 or min(probabilities) < 0:
        raise ValueError(f"probabilities sum to {sum(probabilities):.6g}, expected 1")
    seconds = float(start) if start else float("nan")
    numbers: list[Any] = [number_of[names[0]] if names else -1 for names in split]
    if several:
        numbers = [[name in names for name in number_of] for names in split]
    return level, recording, group, attack, seconds, fold, *numbers, probabilities
