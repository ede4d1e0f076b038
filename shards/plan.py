"""What a build is going to do, decided by words and headers alone: parts, shards, fingerprint."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.audio import segment_starts
from shards.copies import RULES, without_leaks
from shards.errors import UserError
from shards.index import SPLITS
from shards.manifest import Recording, Reject, Scan, describe, digest, natural, scan
from shards.mel import MelSettings
from shards.split import assign, fold_names, parse_parts
from shards.write import Numbers, Recipe, sample_bytes

logger = logging.getLogger(__name__)

DEFAULT_FOLDS = 5
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build to be done. `settings` and `manifest` together decide every byte of it."""

    recipe: Recipe
    out: Path
    recordings: list[Recording]
    rejected: list[Reject]  # by their headers
    classes: list[str]
    folds: list[str]
    method: str
    shards: list[range]  # of places in `recordings`
    settings: Mapping[str, Any]
    manifest: str

    @property
    def numbers(self) -> Numbers:
        """Class and fold numbers."""
        return Numbers(*({name: n for n, name in enumerate(x)} for x in (self.classes, self.folds)))


def parse_size(text: str) -> int:
    """`256MB`, `1GiB` or `1000000` in bytes.

    Raises:
        UserError: no such size.
    """
    match = re.fullmatch(r"([\d.]+)\s*([KMG]?I?)B?", text.strip().upper())
    if not match or match[2] not in UNITS or match[1].count(".") > 1 or match[1] == ".":
        raise UserError(f"--shard_size={text}: expected a size such as 256MB or 1GiB")
    size = int(float(match[1]) * UNITS[match[2]])
    if size < 1:
        raise UserError(f"--shard_size={text}: has to be at least 1 byte, as 256MB is")
    return size


def settle(words: Mapping[str, Any]) -> dict[str, Any]:
    """The words that decide the bytes, with defaults filled in and checked against each other.

    Raises:
        UserError: a value out of its range, or two words that exclude each other.
    """
    settings = dict(words)
    if words["fmax"] is None:
        settings["fmax"] = words["sample_rate"] / 2
    settings["shard_size"] = parse_size(words["shard_size"])
    settings["split"] = None if words["split"] is None else list(parse_parts(words["split"]))
    for asked, given in (("folds", "fold_from"), ("split", "split_from")):
        if words[asked] is not None and words[given] is not None:
            raise UserError(f"--{asked} and --{given} exclude each other; keep one")
    if all(words[name] is None for name in ("folds", "split", "fold_from", "split_from")):
        settings["folds"] = DEFAULT_FOLDS
    if settings["folds"] is not None and settings["folds"] < 2:
        raise UserError(f"--folds={settings['folds']}: cross-validation needs at least 2")
    if not 0 <= words["seed"] < 2**32:
        raise UserError(f"--seed={words['seed']}: has to lie between 0 and {2**32 - 1}")
    if not 0 <= words["overlap"] < 1:
        raise UserError(f"--overlap={words['overlap']}: a share of a segment, 0 <= overlap < 1")
    if not (math.isfinite(words["segment_seconds"]) and words["segment_seconds"] > 0):
        raise UserError(f"--segment_seconds={words['segment_seconds']}: has to be above 0")
    if words["on_duplicate"] not in RULES:
        raise UserError(
            f"--on_duplicate={words['on_duplicate']}: has to be one of {', '.join(RULES)}"
        )
    return settings


def make_recipe(audio: Path, settings: Mapping[str, Any]) -> Recipe:
    """The recipe that settled settings stand for.

    Raises:
        UserError: a mel setting out of its range, or a segment of no sample.
    """
    names = ("sample_rate", "n_fft", "hop_length", "n_mels", "fmin", "fmax")
    mel = MelSettings(**{name: settings[name] for name in names})
    length = round(settings["segment_seconds"] * mel.sample_rate)
    hop = round(length * (1 - settings["overlap"]))
    if length < mel.hop_length or hop < 1:
        raise UserError(
            f"--segment_seconds={settings['segment_seconds']}: {length} samples at "
            f"{mel.sample_rate} Hz, less than one frame of --hop_length={mel.hop_length}; give more"
        )
    return Recipe(audio=audio, mel=mel, length=length, hop=hop)


def make_plan(recipe: Recipe, out: Path, settings: Mapping[str, Any], workers: int = 1) -> Plan:
    """Scan the audio, deal out folds and parts, and tell what was understood.

    Raises:
        UserError: nothing to build from, or not as asked; see `scan` and `assign`.
    """
    seed = settings["seed"]
    patterns = {name: settings[name] for name in ("group_from", "fold_from", "split_from")}
    found = scan(recipe.audio, seed=seed, **patterns)
    if settings["on_duplicate"] != "warn":
        found = without_leaks(found, recipe, settings["on_duplicate"], workers)
    check_left({r.label for r in found.recordings}, found.rejected)
    parts = tuple(settings["split"]) if settings["split"] else None
    fold, split, method = assign(found.recordings, settings["folds"], parts, seed)
    folds = fold_names(found.recordings, settings["folds"])
    recordings = [
        replace(r, fold=folds[f] if folds else None, split=SPLITS[s])
        for r, f, s in zip(found.recordings, fold.tolist(), split.tolist(), strict=True)
    ]
    logger.info("%s", describe(Scan(recordings, found.rejected, found.passed_by)))
    return Plan(
        recipe=recipe,
        out=out,
        recordings=recordings,
        rejected=found.rejected,
        classes=sorted({r.label for r in recordings}, key=natural),
        folds=folds,
        method=method,
        shards=plan_shards(recordings, recipe, settings["shard_size"]),
        settings=settings,
        manifest=digest(recordings, found.rejected),
    )


def check_left(labels: set[str], rejected: Sequence[Reject]) -> None:
    """Raise a UserError that names a class of which every file was rejected."""
    for reject in rejected:
        label = reject.path.partition("/")[0]
        if label not in labels:
            raise UserError(
                f"class {label!r}: none of its files can be used, such as {reject.path!r} "
                f"({reject.reason}); replace them or take the class away"
            )


def plan_shards(recordings: Sequence[Recording], recipe: Recipe, shard_size: int) -> list[range]:
    """Runs of recordings that fill about `shard_size` bytes each, going by their headers."""
    each = sample_bytes(recipe.shape)
    shards, first, filled = [], 0, 0
    for place, recording in enumerate(recordings):
        n = round(recording.seconds * recipe.mel.sample_rate)
        size = each * len(segment_starts(n, recipe.length, recipe.hop))
        if filled and filled + size > shard_size:
            shards.append(range(first, place))
            first, filled = place, 0
        filled += size
    return [*shards, range(first, len(recordings))]
