"""Which samples train, validate and test, and what reports say of that."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shards.errors import UserError
from shards.index import SPLITS, ShardSet
from shards.mixture import group_names
from shards.selection import CHUNK, Selection, deal
from toolkit.schema import DataConfig

Masks = dict[str, np.ndarray]
PROTOCOLS = {
    "split": "One split, as stored in the shard set; each part is disjoint from the others.",
    "kfold": "Each fold is the test part once; no validation, the last epoch is scored.",
    "kfold_nested": "Each fold is the test part once; the next fold chose the epoch.",
    "kfold_optimistic": "Each fold is the test part once, and also chose epoch and threshold.",
}
CAUTION = {"kfold_optimistic": "optimistic: the epoch was chosen on the reported fold"}


def check_fits(shard_set: ShardSet, config: DataConfig) -> None:
    """Raise a UserError where the shard set is not what the config or the trainer is made for."""
    by_class = config.balance == "class" or isinstance(config.weights, dict)
    if shard_set.is_multi_label and by_class:
        raise UserError(
            f"data.balance={config.balance}, data.weights={config.weights}: samples of {shard_set} "
            "have several classes, none of which can be drawn alone; use optim.class_weights"
        )
    there = {**shard_set.info["mel"], "segment_seconds": shard_set.info["segment"]["seconds"]}
    names = ("sample_rate", "n_mels", "n_fft", "hop_length", "fmin", "fmax", "segment_seconds")
    wrong = [
        f"{name}: {there[name]} there, {getattr(config, name)} asked"
        for name in names
        if getattr(config, name) not in (None, there[name])
    ]
    if wrong:
        raise UserError(
            f"{shard_set} does not fit the config ({'; '.join(wrong)}); "
            "build the set with these settings or change data.* in the config"
        )


def part_masks(shard_set: ShardSet, protocol: str, fold: int) -> Masks:
    """What belongs to train, val and test, as (3, F) booleans over (stored split, fold).

    `split`: the stored parts. `kfold`: `fold` tests, the rest trains, nothing validates.
    `kfold_nested`: `fold` tests, the next one validates and chooses the epoch, the rest trains.
    `kfold_optimistic`: as `kfold`; `open_parts` has the test part validate, too.

    Raises:
        UserError: the set has no such folds or parts.
    """
    n_folds = len(shard_set.folds)
    grid = np.zeros((len(SPLITS), max(1, n_folds)), bool)
    split, folds = np.indices(grid.shape)
    if protocol == "split":
        if (
            shard_set.info["split"]["parts"] is None
            and shard_set.info["split"]["split_from"] is None
        ):
            raise UserError(
                f"data.protocol=split: {shard_set} was built without --split; "
                "use data.protocol=kfold or build it with --split=0.7,0.15,0.15"
            )
        return {part: split == code for code, part in enumerate(SPLITS)}
    needed = 3 if protocol == "kfold_nested" else 2
    if n_folds < needed:
        raise UserError(
            f"data.protocol={protocol} needs at least {needed} folds, {shard_set} has "
            f"{n_folds}; build it with --folds or --fold_from"
        )
    if fold >= n_folds:
        names = ", ".join(shard_set.folds)
        raise UserError(
            f"data.fold={fold}: {shard_set} has folds 0 to {n_folds - 1} (named {names})"
        )
    test = folds == fold
    val = folds == (fold + 1) % n_folds if protocol == "kfold_nested" else grid
    return {"train": ~test & ~val, "val": val, "test": test}


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How the samples of the training part are told apart, so that each group has its share."""

    count: int = 1
    of: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  #: (numbers, rows) -> (P,)


def select(
    shard_set: ShardSet,
    masks: Masks,
    groups: Groups = Groups(),
    fraction: float = 1.0,
    seed: int = 0,
) -> dict[str, Selection]:
    """The samples of each part, from one pass over the index; those of no class take no part.

    The training part is sorted by `groups`, and only a `fraction` of it taken; see `subset`.

    Raises:
        UserError: nothing to train on or nothing to test on.
    """
    part_of = np.full(masks["train"].shape, -1)
    for part, mask in enumerate(masks.values()):
        part_of[mask] = part
    kept = subset(shard_set, masks["train"], fraction, seed) if fraction < 1 else None

    def group_of(first: int, stop: int) -> np.ndarray:
        rows = shard_set.rows(slice(first, stop))
        part = part_of[rows["split"], rows["fold"]]
        train = part == 0
        found = np.where(train, 0, part + groups.count - 1)  # val and test come behind
        found[(part < 0) | (rows["label"] < 0)] = -1
        if kept is not None:
            found[train & ~kept[rows["recording"]]] = -1
        if groups.of is not None:
            found[found == 0] = groups.of(np.arange(first, stop), rows)[found == 0]
        return found

    parts = dict(zip(masks, deal(len(shard_set), group_of, [groups.count, 1, 1]), strict=True))
    for name in ("train", "test"):
        if not len(parts[name]):
            raise UserError(f"{shard_set}: the {name} part is empty; build it with another split")
    return parts


def subset(shard_set: ShardSet, mask: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which recordings make `fraction` of the training part: (recordings,) bool, for `select`.

    In each class the groups of recordings stand in an order that the seed decides and the first of
    them are taken, at least one: so 10 % is inside 20 %, a recording is taken whole, and classes
    keep their shares. Raises a UserError unless 0 < fraction.
    """
    if fraction <= 0:
        raise UserError(f"data.fraction={fraction:g}: above 0, up to 1")
    label = np.full(shard_set.info["recordings"], -1)
    for first in range(0, len(shard_set), CHUNK):
        rows = shard_set.rows(slice(first, first + CHUNK))
        rows = rows[mask[rows["split"], rows["fold"]]]
        label[rows["recording"]] = rows["label"]
    place = np.zeros(len(label), np.uint64)
    for i, name in enumerate(group_names(shard_set)):
        if label[i] >= 0:
            text = f"{seed}\0{name}"
            digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8)
            place[i] = int.from_bytes(digest.digest(), "little")
    order = np.lexsort((place, label))
    begins = np.diff(label[order], prepend=-2) != 0  # a class
    changes = begins | (np.diff(place[order], prepend=np.uint64(0)) != 0)  # a group in it
    nth = np.cumsum(changes)
    nth -= np.maximum.accumulate(np.where(begins, nth, 0))
    most = np.zeros(len(shard_set.label_sets) + 1, np.int64)
    np.maximum.at(most, label[order], nth + 1)
    kept = np.zeros(len(label), bool)
    kept[order] = (nth < np.ceil(fraction * most[label[order]])) & (label[order] >= 0)
    return kept


def normalisation(shard_set: ShardSet, mask: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in dB of the part that `mask` tells, per band or over all.

    From stats.npy alone, so nothing of another part leaks in; 0 and 1 for `none`, and for `sample`
    and `peak`, where Transform takes each sample's own. Shape: (M,), (M,) float32.
    """
    n_mels = shard_set.shape[0]
    if how in ("none", "sample", "peak"):
        return np.zeros(n_mels, np.float32), np.ones(n_mels, np.float32)
    count, total, squares = shard_set.stats[mask].sum(axis=(0, 1))
    if how == "global":
        count, total, squares = (np.full(n_mels, s.sum()) for s in (count, total, squares))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # A band that never changes (above the band limit of all recordings) must not be blown up.
    return mean.astype(np.float32), np.maximum(std, 1e-2).astype(np.float32)
