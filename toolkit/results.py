"""What training left in folders, read back; settings without their secrets."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import UserError
from shards.index import ShardSet
from toolkit.predictions import ANEW, LEVELS, Predictions, read_predictions

SECRET = r"key|token|passw|secret|credential"
SECRET_NAME = re.compile(SECRET, re.I)
SECRET_TEXT = re.compile(
    rf"(?P<name>[\w.-]*(?:{SECRET})[\w.-]*\s*[=:]\s*|--[\w.-]*(?:{SECRET})[\w.-]*\s+)(\"[^\"]*\"|\S+)"
    r"|(?P<scheme>\w+://)[^/@\s]+@"
    r"|\b(?:hf_|ghp_|gho_|github_pat_|glpat-|sk-|AKIA)\w{12,}",
    re.I,
)
#: What Slurm and slurm/job.sh say of a training that has ended: after its own last words.
AFTERWARDS = re.compile(r"srun: |\[\S+ job \S+ on \S+\] ended with exit code")

#: GRID/seed-S/fold-F below the run's folder, as launch.tasks names them; any may be absent.
TRAINING = re.compile(
    r"(?:(?P<grid>[^/]*=[^/]*)/)?(?:seed-(?P<seed>\d+)/)?(?:fold-(?P<fold>\d+)/)?"
)
LEFT = ("environment.json", "train.log", "scores.json")  #: by a training that was begun


@dataclass(frozen=True)
class Fold:
    """What training left in one fold's folder; config and environment without their secrets."""

    folder: Path
    result: Mapping[str, Any]  # scores.json
    predictions: Predictions
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]  # metrics.jsonl

    @property
    def name(self) -> str:
        """The fold's name in the shard set; "split" if the run has no folds."""
        return str(self.result["fold"] or "split")


def last_words(folder: Path, count: int = 4) -> list[str]:
    """The last lines of the log of a training in `folder`, if whoever started it has kept one."""
    try:
        text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [redact(line) for line in text.splitlines() if line.strip()]
    return [line for line in lines if not AFTERWARDS.match(line)][-count:]


def redact(value: Any, name: str = "") -> Any:
    """`value` with "***" for whatever looks like a key, a token or a password."""
    if isinstance(value, Mapping):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, name) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if SECRET_NAME.search(name):
        return "***"
    return SECRET_TEXT.sub(hidden, value) if isinstance(value, str) else value


def hidden(match: "re.Match[str]") -> str:
    """What is shown in place of a secret inside a text: its name stays."""
    scheme = match["scheme"]
    return f"{match['name'] or ''}***" if not scheme else f"{scheme}***@"


def read_json(file: Path) -> Any:
    """A JSON file; a UserError names it if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); {ANEW}") from None


def read_records(file: Path, most: int | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl, or what its last `most` bytes hold; a line that a killed run left unfinished,
    or that is being written, is passed over."""
    records = []
    with suppress(OSError), open(file, "rb") as lines:
        lines.seek(max(0, os.fstat(lines.fileno()).st_size - most) if most else 0)
        for line in lines.read().splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and "step" in record]


def read_config(file: Path) -> dict[str, Any]:
    """config.yaml; empty if there is none."""
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file.exists() else {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: not valid YAML ({reason}); copy it again") from None


def make_fold(folder: Path, result: Mapping[str, Any], predictions: Predictions) -> Fold:
    """A Fold from its result and predictions, and what else lies in its folder."""
    environment = folder / "environment.json"
    return Fold(
        folder=folder,
        result=result,
        predictions=predictions,
        config=redact(read_config(folder / "config.yaml")),
        environment=redact(read_json(environment) if environment.exists() else {}),
        records=read_records(folder / "metrics.jsonl"),
    )


def read_fold(folder: Path) -> Fold:
    """A finished fold.

    Raises:
        UserError: a file is missing or damaged, or predictions.csv is not what was scored.
    """
    result = read_json(folder / "scores.json")
    predictions = read_predictions(folder / "predictions.csv")
    for level in LEVELS:
        found, expected = int((predictions.level == level).sum()), result[level]["n"]
        if found != expected:
            raise UserError(
                f"{folder / 'predictions.csv'}: {found} rows of level {level}, scores.json has "
                f"{expected}; {ANEW}"
            )
    return make_fold(folder, result, predictions)


def set_identity(shard_set: ShardSet) -> str:
    """What tells one shard set from another, wherever it lies: a digest of dataset.json."""
    text = json.dumps(shard_set.info, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
