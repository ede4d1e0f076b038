"""What a run trains on: shard sets opened as one, and in which order their samples come."""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.command import nearest
from shards.draws import Draw, Full, Grouped, Stored, Weighted, Window
from shards.errors import UserError
from shards.index import ShardSet, open_set
from shards.mixture import Mixture, mix_sets
from shards.order import Order
from shards.remote import is_url
from shards.selection import Selection
from shards.stage import staged
from toolkit.config import number
from toolkit.protocol import Groups, check_fits, normalisation, part_masks, select
from toolkit.schema import Config, DataConfig
from toolkit.watch import at

log = logging.getLogger(__name__)


class Data(NamedTuple):
    """What a run trains, validates and tests on; the same on every rank."""

    shard_set: ShardSet
    parts: dict[str, Selection]  #: "train", "val", "test": sample numbers
    order: Order  #: of the training part
    mean: np.ndarray  #: (M,) float32, dB
    std: np.ndarray  #: (M,) float32, dB


def open_parts(config: Config) -> Data:
    """The samples of a run, in the order and with the statistics that its config asks for.

    Raises:
        UserError: a set is missing or unsound, or does not have what is asked of it.
    """
    data, train = config.data, config.train
    shard_set = open_data(data)
    check_fits(shard_set, data)
    masks = part_masks(shard_set, data.protocol, data.fold)
    groups = make_groups(shard_set, data)
    parts = select(shard_set, masks, groups, data.fraction, train.seed)
    if data.protocol == "kfold_optimistic":
        parts["val"] = parts["test"]  # what is reported chooses the epoch: to compare, no result
    order = make_order(shard_set, parts["train"], data, train.batch_size, train.seed)
    mean, std = normalisation(shard_set, masks["train"], data.normalize)
    return Data(shard_set, parts, order, mean, std)


def open_data(data: DataConfig) -> ShardSet:
    """The shard set of `data`; where there are several, or only some classes are asked, as one.

    Raises:
        UserError: a set is missing or unsound, or the sets do not agree.
    """
    paths, weights = sources(data.shards)
    sets = [open_set(near(path, data.stage), data.cache_gb) for path in paths]
    if len(sets) == 1 and data.classes is None:
        return sets[0]
    mixture = mix_sets(sets, data.classes, weights)
    if data.protocol != "split" and not mixture.folds and any(s.folds for s in sets):
        raise UserError(
            f"data.protocol={data.protocol}: {mixture.path} have different folds; "
            "build them with the same ones or use data.protocol=split"
        )
    return mixture


def near(path: str, stage: str | None) -> str:
    """Where to read a set from: its copy below `stage`, if one is asked for and can be had."""
    if stage is None or is_url(path):  # shards from an address have a cache of their own
        return path
    unset = [name for name in re.findall(r"\$\{?(\w+)", stage) if name not in os.environ]
    if unset:
        log.warning("data.stage=%s: %s is not set; training reads %s", stage, unset[0], path)
        return path
    return str(staged(path, os.path.expandvars(stage), partial(at, "copying shards")))


def sources(shards: str | list[Any]) -> tuple[list[str], list[float] | None]:
    """The paths in `data.shards`, and their weights if they have any."""
    several: list[Any] = [shards] if isinstance(shards, str) else shards
    entries = [{"path": one} if isinstance(one, str) else one for one in several]
    for one in entries or [None]:
        if not (isinstance(one, dict) and one.keys() <= {"path", "weight"} and "path" in one):
            raise UserError(f"data.shards={shards}: a path, or a list as [{{path: A, weight: 2}}]")
    paths = [str(one["path"]) for one in entries]
    weights: list[Any] = [one.get("weight") for one in entries]
    if all(weight is None for weight in weights):
        return paths, None
    found = [number(float, weight) or 0.0 for weight in weights]
    if not all(0 < weight < math.inf for weight in found):
        raise UserError(f"data.shards={shards}: every set needs a weight above 0, or none has one")
    return paths, found


def make_groups(shard_set: ShardSet, data: DataConfig) -> Groups:
    """The groups among which the draws are shared out: classes, sets, or classes of each set."""
    by_class = data.balance == "class" or isinstance(data.weights, Mapping)
    n_classes = len(shard_set.class_names) if by_class else 1
    n_sets = len(source_weights(shard_set))

    def of(numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        label = rows["label"].astype(np.int64) if by_class else np.zeros(len(rows), np.int64)
        if n_sets > 1:
            assert isinstance(shard_set, Mixture)
            label += n_classes * shard_set.source_of(numbers)
        return label

    return Groups(count=n_sets * n_classes, of=of if n_sets * n_classes > 1 else None)


def source_weights(shard_set: ShardSet) -> list[float]:
    """How often each of the sets is drawn from, to each other; [1] where that is left to sizes."""
    return shard_set.info.get("weights") or [1.0]


def make_order(
    shard_set: ShardSet, train: Selection, data: DataConfig, batch_size: int, seed: int
) -> Order:
    """The order of training that `data` asks for.

    Raises:
        UserError: settings that exclude each other, weights that do not fit the samples, or an
            epoch without a whole batch.
    """
    length = data.samples_per_epoch or len(train)
    draw = make_draw(shard_set, train, data, length, seed)
    order = Order(len(train), batch_size, seed, data.last_batch, draw, length)
    if not order.steps_per_epoch:
        raise UserError(
            f"data.last_batch=drop: an epoch of {length} samples has no whole batch of "
            f"{batch_size}; use data.last_batch=wrap or a smaller train.batch_size"
        )
    return order


def make_draw(
    shard_set: ShardSet, train: Selection, data: DataConfig, length: int, seed: int
) -> Draw:
    """Which sample stands where, by data.shuffle, data.balance and data.weights."""
    grouped = len(train.sizes) > 1 or data.balance == "class"
    file = data.weights if isinstance(data.weights, str) else None
    if (grouped or file) and data.shuffle != "full":
        raise UserError(
            f"data.shuffle={data.shuffle} takes all samples in turn; data.balance, data.weights "
            "and weights of shard sets choose; use data.shuffle=full"
        )
    if grouped and file:
        raise UserError(
            f"data.weights={file} says how often each sample comes; "
            "leave out data.balance and the weights of shard sets"
        )
    if file:
        return by_sample(shard_set, train, file, length, seed)
    if grouped:
        return Grouped(train.sizes, shares(shard_set, train.sizes, data), seed)
    if data.shuffle == "window":
        return Window(train.ranks(shard_set.shard_ends), data.window, seed)
    return Full(len(train), seed) if data.shuffle == "full" else Stored(len(train))


def shares(shard_set: ShardSet, sizes: np.ndarray, data: DataConfig) -> np.ndarray:
    """The share of each group: its set's weight, shared out among the set's classes.

    Classes take part by their samples, or all equally with `data.balance=class`, times their
    weights. Shape: (G,) -> (G,) float64.
    """
    weights = source_weights(shard_set)
    counts = sizes.reshape(len(weights), -1)
    part = np.where(counts > 0, 1.0, 0.0) if data.balance == "class" else counts.astype(np.float64)
    if isinstance(data.weights, Mapping):
        part *= by_class("data.weights", data.weights, shard_set.class_names)
    totals = part.sum(axis=1, keepdims=True)
    if not totals.all():
        raise UserError(f"data.weights={data.weights}: a shard set has no sample left to draw")
    return (np.array(weights)[:, None] * part / totals).ravel()


def by_class(key: str, weights: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """A weight for each class, 1 where the setting `key` gives none. Shape: (K,)."""
    for name, weight in weights.items():
        if name not in names:
            raise UserError(f"{key}: no class {name!r}; {nearest(name, names)}")
        if not 0 <= weight < math.inf:
            raise UserError(f"{key}: {name}: {weight}; a finite number, at least 0")
    return np.array([float(weights.get(name, 1.0)) for name in names])


def by_sample(shard_set: ShardSet, train: Selection, file: str, length: int, seed: int) -> Weighted:
    """Draws by the weights in an .npy file: (N,) numbers, one a sample of the shard set."""
    try:
        weights = np.load(Path(file), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"data.weights={file}: {error}; save it by numpy.save") from None
    if weights.shape != (len(shard_set),) or weights.dtype.kind not in "fiu":
        raise UserError(
            f"data.weights={file}: {weights.dtype} of shape {weights.shape}; expected "
            f"({len(shard_set)},) numbers, one a sample"
        )
    pieces = (checked(weights[some], file) for some in train.pieces())
    draw = Weighted(pieces, len(train), length, seed)
    if not draw.total > 0:
        raise UserError(f"data.weights={file}: all weights of the training part are 0")
    return draw


def checked(weights: np.ndarray, file: str) -> np.ndarray:
    """`weights`, or a UserError about one that is negative or not finite."""
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(f"data.weights={file}: a weight is negative or not finite")
    return weights


def link_of(config: Config, shard_set: ShardSet) -> str:
    """How logits of a model that `config` trains are read."""
    if shard_set.is_multi_label:
        return "sigmoid"
    bce = config.optim.loss == "bce" and config.model.outputs is None
    return "shares" if bce else "softmax"
