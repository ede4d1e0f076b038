"""predictions.csv: what a model said of every segment and every recording.

Shapes: `N` rows, `K` classes.
"""

import csv
import io
from collections.abc import Mapping, Sequence
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
#: The way out where what a training has left of its scores is damaged.
ANEW = "remove scores.json there and start that training again: it only scores anew"


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


def columns(several: bool, attacks: bool, marked: bool = False) -> list[str]:
    """Those before the probabilities; `several` classes a sample, a set that knows of `attacks`,
    `marked` by a caution."""
    attack, labels = ["attack"] * attacks, ["caution"] * marked + ["labels" if several else "label"]
    return ["level", "recording", "group", *attack, "start", "fold", *labels, "predicted"]


def write_predictions(file: Path, p: Predictions, caution: str | None = None) -> None:
    """Write predictions.csv whole or not at all; probabilities with 9 significant digits, in each
    row the `caution` that its protocol needs."""
    text, attacks = io.StringIO(), bool((p.attack != "").any())
    # Only with the terminator \r\n does csv quote both a \r and a \n inside a name; \n is written.
    writer = csv.writer(SimpleNamespace(write=lambda row: text.write(row[:-2] + "\n")))
    header = columns(p.is_multi_label, attacks, bool(caution))
    writer.writerow([*header, *(f"p_{name}" for name in p.classes)])
    for i in range(len(p.labels)):
        about = [p.level[i], p.recording[i], p.group[i], *[p.attack[i]] * attacks]
        start = "" if np.isnan(p.start[i]) else f"{p.start[i]:.9g}"
        names = [names_of(found[i], p.classes) for found in (p.labels, p.predicted)]
        probabilities = [f"{value:.9g}" for value in p.probabilities[i].tolist()]
        marks = [caution] if caution else []
        writer.writerow([*about, start, p.fold[i], *marks, *names, *probabilities])
    # A file name that is not UTF-8 keeps its bytes.
    write_atomic(file, text.getvalue().encode("utf-8", "surrogateescape"))


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
                classes = [name for name in header if name.startswith("p_")]
                number_of = {name.removeprefix("p_"): n for n, name in enumerate(classes)}
                head = header[: len(header) - len(classes)]
                marks = (name in head for name in ("labels", "attack", "caution"))
                if head != columns(*marks) or not classes:
                    names = ",".join(columns(several=False, attacks=False))
                    raise ValueError(f"columns are not {names},p_CLASS...")
                rows = [parse(row, head, number_of) for row in reader]
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{file}: line {max(1, reader.line_num)}: {error}; "
                    f"copy the file again, or {ANEW}"
                ) from None
    except FileNotFoundError:
        raise UserError(f"{file}: missing; {ANEW}") from None
    kinds: dict[str, Any] = dict.fromkeys(("start", "probabilities"), np.float64)
    kinds |= dict.fromkeys(("labels", "predicted"), bool if "labels" in head else np.int64)
    found = {f.name: [row[f.name] for row in rows] for f in fields(Predictions)[1:]}
    arrays: dict[str, Any] = {
        name: np.array(values, kinds[name]) if name in kinds else texts(values)
        for name, values in found.items()
    }
    arrays["probabilities"] = arrays["probabilities"].reshape(-1, len(number_of))
    return Predictions(classes=tuple(number_of), **arrays)


def parse(row: list[str], head: list[str], number_of: dict[str, int]) -> dict[str, Any]:
    """The fields of one row, its texts as numbers, several classes as one bool a class; a
    ValueError tells what is wrong with it."""
    expected = len(head) + len(number_of)
    if len(row) != expected:
        raise ValueError(f"{len(row)} values, expected {expected}")
    said: dict[str, Any] = {"attack": "", **dict(zip(head, row, strict=False))}
    if said["level"] not in LEVELS:
        raise ValueError(f"level {said['level']!r} is neither segment nor recording")
    several = "labels" in head
    for field, text in (("labels", row[len(head) - 2]), ("predicted", row[len(head) - 1])):
        names = [name for name in text.split(SEPARATOR) if name] if several else [text]
        for name in names:
            if name not in number_of:
                raise ValueError(f"class {name!r} has no column p_{name}")
        said[field] = [n in names for n in number_of] if several else number_of[names[0]]
    probabilities = [float(text) for text in row[len(head) :]]
    # A row cut inside its last number is found by its sum.
    if several:
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError("a probability is not within 0 and 1")
    elif not abs(sum(probabilities) - 1) < 1e-4 or min(probabilities) < 0:
        raise ValueError(f"probabilities sum to {sum(probabilities):.6g}, expected 1")
    start = float(said["start"]) if said["start"] else float("nan")
    return {**said, "start": start, "probabilities": probabilities}
