"""Which samples train, validate and test."""

import numpy as np

from shards.errors import UserError
from shards.index import SPLITS, ShardSet
from toolkit.config import DataConfig

Masks = dict[str, np.ndarray]


def check_fits(shard_set: ShardSet, config: DataConfig) -> None:
    """Raise a UserError where the shard set is not what the config or the trainer is made for."""
    if shard_set.is_multi_label:
        raise UserError(
            f"{shard_set}: samples have several classes, and training takes one class a "
            "sample; build it with one label a recording"
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


def select(shard_set: ShardSet, masks: Masks) -> dict[str, np.ndarray]:
    """The sample numbers of each part, sorted. Shape: {part: (N_part,) int64}.

    Raises:
        UserError: nothing to train on or nothing to test on.
    """
    index = shard_set.index
    parts = {
        name: np.flatnonzero(mask[index["split"], index["fold"]]) for name, mask in masks.items()
    }
    for name in ("train", "test"):
        if not len(parts[name]):
            raise UserError(f"{shard_set}: the {name} part is empty; build it with another split")
    return parts


def normalisation(shard_set: ShardSet, mask: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in dB of the part that `mask` tells, per band or over all.

    From stats.npy alone, so nothing of another part leaks in. Shape: (M,), (M,) float32.
    """
    n_mels = shard_set.shape[0]
    if how == "none":
        return np.zeros(n_mels, np.float32), np.ones(n_mels, np.float32)
    count, total, squares = shard_set.stats[mask].sum(axis=(0, 1))
    if how == "global":
        count, total, squares = (np.full(n_mels, s.sum()) for s in (count, total, squares))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # A band that never changes (above the band limit of all recordings) must not be blown up.
    return mean.astype(np.float32), np.maximum(std, 1e-2).astype(np.float32)
