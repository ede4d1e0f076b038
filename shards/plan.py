"""What a build is going to do, decided by words and headers alone: parts, shards, fingerprint."""

import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.append import only_new
from shards.condition import Conditioning
from shards.copies import RULES
from shards.errors import UserError
from shards.index import ShardSet
from shards.labels import classes_of, label_sets, names, numbers
from shards.manifest import Scan, scan
from shards.mel import MelSettings
from shards.mel_device import check_device
from shards.recipe import Recipe
from shards.recording import Recording, Reject, digest
from shards.root import Root
from shards.segment import PADS, TAILS, segment_count
from shards.split import dealt, parse_parts
from shards.summary import describe
from shards.table import BY_NAME, Table
from shards.write import Numbers, sample_bytes

logger = logging.getLogger(__name__)

DEFAULT_FOLDS = 5
LONGEST = 3600  # seconds of a segment
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build to be done. `settings` and `manifest` together decide every byte of it."""

    recipe: Recipe
    out: Path
    recordings: list[Recording]
    rejected: list[Reject]  # by their headers
    classes: list[str]
    label_sets: list[list[int]]  # the class numbers of each label: [[0], [1], ...] if one each
    folds: list[str]
    method: str
    shards: Mapping[int, range]  # by their numbers; of places in `recordings`
    settings: Mapping[str, Any]
    manifest: str
    base: ShardSet | None = None  # what is appended to
    command: str = ""  # that asked for it

    @property
    def numbers(self) -> Numbers:
        """The numbers of labels, of their first classes, and of folds."""
        number = {name: n for n, name in enumerate(self.classes)}
        sets = {tuple(some): n for n, some in enumerate(self.label_sets)}
        found = {label: numbers(label, number) for label in {r.label for r in self.recordings}}
        return Numbers(
            {label: sets[tuple(some)] for label, some in found.items()},
            {label: some[0] for label, some in found.items()},
            {name: n for n, name in enumerate(self.folds)},
        )

    @property
    def appended(self) -> list[int]:
        """The first shard of each append to the set so far, this one included."""
        return [*self.base.info["appended"], *list(self.shards)[:1]] if self.base else []

    @property
    def first_place(self) -> int:
        """What the places in `recordings` count from, so that no key comes twice."""
        return self.base.info["recordings"] + self.base.info["rejected"] if self.base else 0


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
    if settings.get("attack_from") is None:
        settings.pop("attack_from", None)  # sets without attacks keep their bytes
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
    if not 0 < words["segment_seconds"] <= LONGEST:
        raise UserError(
            f"--segment_seconds={words['segment_seconds']:g}: above 0 and at most {LONGEST}"
        )
    if not 0 <= words["min_seconds"] < math.inf:
        raise UserError(f"--min_seconds={words['min_seconds']}: has to be 0 or more")
    for name, known in (("pad", PADS), ("tail", TAILS), ("on_duplicate", RULES)):
        if words[name] not in known:
            raise UserError(f"--{name}={words[name]}: has to be one of {', '.join(known)}")
    return settings


def make_recipe(audio: Root, settings: Mapping[str, Any]) -> Recipe:
    """The recipe that settled settings stand for.

    Raises:
        UserError: a mel setting or a step of conditioning out of its range, a segment of no sample,
            or a device that is not there.
    """
    names = ("sample_rate", "n_fft", "hop_length", "n_mels", "fmin", "fmax")
    mel = MelSettings(**{name: settings[name] for name in names})
    steps = ("highpass", "trim_silence", "loudness", "peak")
    conditioning = Conditioning(
        sample_rate=mel.sample_rate, **{name: settings[name] for name in steps}
    )
    length = round(settings["segment_seconds"] * mel.sample_rate)
    hop = round(length * (1 - settings["overlap"]))
    if hop < 1:
        raise UserError(f"--overlap={settings['overlap']}: no sample is left between two starts")
    if length < mel.hop_length:
        raise UserError(
            f"--segment_seconds={settings['segment_seconds']}: {length} samples at "
            f"{mel.sample_rate} Hz, less than one frame of --hop_length={mel.hop_length}; give more"
        )
    if settings["device"] != "cpu":
        check_device(settings["device"])
    rules = {name: settings[name] for name in ("pad", "tail", "min_seconds", "device")}
    return Recipe(audio=audio, mel=mel, conditioning=conditioning, length=length, hop=hop, **rules)


def make_plan(
    recipe: Recipe,
    out: Path,
    settings: Mapping[str, Any],
    table: Table | None = None,
    strict: bool = False,
    base: ShardSet | None = None,
    settle_copies: Callable[[Scan], Scan] | None = None,
    file_timeout: float = 0.0,
) -> Plan:
    """Scan the audio, deal out folds and parts, and tell what was understood.

    A `table` names the recordings, or they are what is below the audio folder; see `scan`. With
    `base` it is a plan for what is not in that set yet. `settle_copies` groups or drops copies.

    Raises:
        UserError: nothing to build from, or not as asked; see `scan`, `assign`, `only_new`.
    """
    seed = settings["seed"]
    columns: dict[str, Any] = {f"{x}_from": settings.get(f"{x}_from") for x in BY_NAME}
    words = {"strict": strict, "seed": seed, "file_timeout": file_timeout}
    found = scan(recipe.audio, table, **words, **columns)
    if base is not None:
        return extension(recipe, base, only_new(base, found, settings), settings)
    if settle_copies:
        found = settle_copies(found)
    classes = classes_of(r.label for r in found.recordings)
    check_left(set(classes), found.rejected)
    parts = tuple(settings["split"]) if settings["split"] else None
    recordings, folds, method = dealt(found.recordings, settings["folds"], parts, seed)
    logger.info("%s", describe(Scan(recordings, found.rejected, found.passed_by)))
    return Plan(
        recipe=recipe,
        out=out,
        recordings=recordings,
        rejected=found.rejected,
        classes=classes,
        label_sets=label_sets((r.label for r in recordings), classes),
        folds=folds,
        method=method,
        shards=dict(enumerate(plan_shards(recordings, recipe, settings["shard_size"]))),
        settings=settings,
        manifest=digest(recordings, found.rejected),
    )


def extension(recipe: Recipe, base: ShardSet, new: Scan, settings: Mapping[str, Any]) -> Plan:
    """The plan for what is new to a finished set: shards of its own behind the old ones."""
    manifest = base.info["manifest"]
    if new.recordings or new.rejected:
        logger.info("new\n%s", describe(new))
        both = manifest + digest(new.recordings, new.rejected)
        manifest = hashlib.sha256(both.encode()).hexdigest()
    runs = plan_shards(new.recordings, recipe, settings["shard_size"]) if new.recordings else []
    classes, sets = list(base.info["classes"]), base.label_sets
    more = label_sets((r.label for r in new.recordings), classes)
    return Plan(
        recipe=recipe,
        out=base.path,
        recordings=new.recordings,
        rejected=new.rejected,
        classes=classes,
        label_sets=[*sets, *(some for some in more if some not in sets)],
        folds=base.folds,
        method=base.info["split"]["method"],
        shards=dict(enumerate(runs, len(base.info["shards"]))),
        settings=settings,
        manifest=manifest,
        base=base,
    )


def check_left(classes: set[str], rejected: Sequence[Reject]) -> None:
    """Raise a UserError that names a class of which every file was rejected."""
    for reject in rejected:
        for name in names(reject.label):
            if name not in classes:
                raise UserError(
                    f"class {name!r}: none of its files can be used, such as {reject.path!r} "
                    f"({reject.reason}); replace them or take the class away"
                )


def plan_shards(recordings: Sequence[Recording], recipe: Recipe, shard_size: int) -> list[range]:
    """Runs of recordings that fill about `shard_size` bytes each, going by their headers."""
    each = sample_bytes(recipe.shape)
    shards, first, filled = [], 0, 0
    for place, recording in enumerate(recordings):
        n = round(recording.seconds * recipe.mel.sample_rate)
        size = each * segment_count(n, recipe.length, recipe.hop, recipe.tail)
        if filled and filled + size > shard_size:
            shards.append(range(first, place))
            first, filled = place, 0
        filled += size
    return [*shards, range(first, len(recordings))]
