"""A random forest on statistics of the bands: the model that a network has to beat.

scikit-learn grows it; what is kept are the arrays of its trees, and these predict, so nothing is
ever unpickled. `N` samples, `F` features, `K` classes, `E` trees, `L` nodes of all trees.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import save as as_safetensors

from shards.errors import UserError
from shards.index import ShardSet, write_atomic
from shards.read import Reader
from shards.selection import Selection
from toolkit import lock, signals, track
from toolkit.band_statistics import feature_names, pooled
from toolkit.claim import take
from toolkit.config import chosen
from toolkit.data import open_parts
from toolkit.history import check as check_metrics
from toolkit.predictions import truth
from toolkit.protocol import CAUTION
from toolkit.report import write_fold
from toolkit.schema import Config, get
from toolkit.validation import notes, score
from toolkit.watch import at
from toolkit.world import World, launched

log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]
STAGES = 10  #: how often the validation part is scored while the forest grows
SIZE = 256  #: segments whose statistics are taken at a time


@lock.releasing()
def fit(config: Config) -> dict[str, Any]:
    """Grow the forest that `config` says, and score it; returns the content of scores.json."""
    wanted = settings(config)
    take(config)
    data, world = open_parts(config), World(0, 1, cast(Any, "cpu"))  # torch takes seconds to load
    shard_set, parts, train = data.shard_set, data.parts, config.train
    check_metrics(config, shard_set, parts["val"])
    folder, begun = track.open_run(config, world), time.perf_counter()
    trees = min(wanted["trees"], train.max_steps or wanted["trees"])
    if finished := track.finished(folder, trees):
        log.info("%s is finished; --train.resume=never trains it anew", folder)
        return finished
    (folder / "scores.json").unlink(missing_ok=True)  # of a run with fewer trees
    metrics = track.Metrics(folder, config, 0, enabled=True)
    sizes = ", ".join(f"{len(numbers)} {name}" for name, numbers in parts.items() if len(numbers))
    log.info("%s: forest of %d trees on %s, samples %s; augment, optim and batches are not for it",
             folder, trees, shard_set, sizes)  # fmt: skip
    x = {name: features(shard_set, numbers) for name, numbers in parts.items()}
    y = {name: truth(shard_set, numbers[:]) for name, numbers in parts.items()}
    several, k, done = shard_set.is_multi_label, len(shard_set.class_names), 0
    total = np.zeros((len(parts["val"]), k))
    for forest in stages(config, wanted, trees, x["train"], y["train"]):
        stop_if_asked(folder)
        new, done = forest.estimators_[done:], forest.n_estimators
        if len(parts["val"]):
            total += votes(tree_arrays(forest, new, k), x["val"])
            seconds = round(time.perf_counter() - begun, 3)
            now = {"step": done, "epoch": 1, "seconds": seconds}
            result = score(config, shard_set, parts["val"][:], log_shares(total, done, several))
            metrics.write("eval", part="val", **now, **track.plain(result))
    arrays = tree_arrays(forest, forest.estimators_, k)
    importance = forest.feature_importances_
    write_atomic(folder / "best.safetensors", as_safetensors({**arrays, "importance": importance}))
    plain = replace(config, data=replace(config.data, normalize="none"))
    track.write_model(folder, plain, shard_set, data.mean[:0], data.std[:0])
    from toolkit import figures

    drawn = figures.draw_importance(importance, shard_set.shape[0])
    figures.save(drawn, folder / "importance.png", CAUTION.get(config.data.protocol))
    state = {"step": trees, "seconds": round(time.perf_counter() - begun, 3)}
    header = track.header(config, shard_set, world, {"step": trees, "epoch": 1}, state, None)
    found = {"test": log_shares(votes(arrays, x["test"]), trees, several)}
    found |= {"val": log_shares(total, trees, several)} if len(parts["val"]) else {}
    header |= notes(config, shard_set, parts, found)
    result = write_fold(folder, shard_set, parts["test"][:], found["test"], header)
    metrics.close(result)
    log.info("%s", track.closing(folder, result))
    return result


def settings(config: Config) -> dict[str, Any]:
    """The forest's own settings.

    Raises:
        UserError: a setting that it does not have, or a launch of several processes.
    """
    if (processes := launched()[1]) > 1:
        raise UserError(
            f"model.name=forest takes one process and all cores of a machine, this launch has "
            f"{processes}; start it by python train.py CONFIG"
        )
    unknown = ("model.init_from", "model.freeze", "model.outputs", "data.weights")
    for name in (*unknown, "train.overfit_batch"):
        if value := get(config, name):
            raise UserError(f"{name}={value}: a forest has no such thing; leave it out")

    def make(*, trees: int = 500, depth: int | None = None, leaf: int = 1) -> dict[str, Any]:
        return {"trees": trees, "depth": depth, "leaf": leaf}

    return make(**chosen(config.model, make))


def features(shard_set: ShardSet, numbers: np.ndarray | Selection) -> np.ndarray:
    """The statistics of these samples. Shape: (N,) -> (N, F) float32."""
    found = np.zeros((len(numbers), len(feature_names(shard_set.shape[0]))), np.float32)
    with Reader(shard_set) as reader:
        for first in range(0, len(numbers), SIZE):
            at("statistics, sample", first)
            some = numbers[first : first + SIZE]
            found[first : first + SIZE] = pooled(reader.read(some))
    return found


def stages(
    config: Config, wanted: Mapping[str, Any], trees: int, x: np.ndarray, y: np.ndarray
) -> Iterator[Any]:
    """The forest as it grows: with a tenth of its trees, two tenths, ... up to all of them."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.utils.class_weight import compute_sample_weight

    balanced = config.data.balance == "class"
    weight = compute_sample_weight("balanced", y) if balanced else None
    forest = RandomForestClassifier(
        warm_start=True,  # later trees are those that would have grown at once
        max_depth=wanted["depth"],
        min_samples_leaf=wanted["leaf"],
        random_state=config.train.seed,
        n_jobs=config.train.threads or len(os.sched_getaffinity(0)),
    )
    for size in np.unique(np.linspace(0, trees, STAGES + 1).astype(int)[1:]).tolist():
        if size:
            at("forest, trees", size)
            yield forest.set_params(n_estimators=size).fit(x, y, weight)


def stop_if_asked(folder: Path) -> None:
    """End with code 75 where a signal has come; a forest grows anew from its first tree."""
    if number := signals.received():
        signals.mark(folder, number, 0)
        raise SystemExit(signals.REQUEUE)


def tree_arrays(forest: Any, trees: Sequence[Any], n_classes: int) -> Arrays:
    """`trees` of a scikit-learn forest as arrays over their nodes, one tree after the other.

    `left`, `right`: (L,) int32, a leaf leads to itself. `feature`: (L,) int32, 0 at a leaf.
    `threshold`: (L,) float64; what is not above goes left. `share`: (L, K) float64, of the classes
    at a node. `roots`: (trees,) int32.
    """
    nodes = [tree.tree_ for tree in trees]
    roots = np.cumsum([0, *(tree.node_count for tree in nodes)])
    found: dict[str, Any] = {"roots": roots[:-1].astype(np.int32)}
    here = np.arange(roots[-1], dtype=np.int32)
    inner = np.concatenate([tree.children_left >= 0 for tree in nodes])
    for name in ("left", "right"):
        there = [getattr(t, f"children_{name}") + r for t, r in zip(nodes, roots, strict=False)]
        found[name] = np.where(inner, np.concatenate(there), here).astype(np.int32)
    feature = np.concatenate([tree.feature for tree in nodes])
    found["feature"] = np.where(inner, feature, 0).astype(np.int32)
    found["threshold"] = np.concatenate([tree.threshold for tree in nodes])
    share = np.zeros((len(here), n_classes))
    value = np.concatenate([tree.value for tree in nodes])
    if forest.n_outputs_ == 1:
        share[:, forest.classes_] = value[:, 0]
    else:  # of each class, how often it is there
        for k, states in enumerate(forest.classes_):
            share[:, k] = value[:, k, : len(states)] @ states
    return {**found, "share": share}


def votes(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """The sum of the shares that all trees give; over E it is what scikit-learn calls
    predict_proba, to the last bit. Shape: (N, F) float32 -> (N, K) float64."""
    total = np.zeros((len(x), arrays["share"].shape[1]))
    for first in range(0, len(x), SIZE):
        some = x[first : first + SIZE]
        rows = np.arange(len(some))[:, None]
        node, before = np.tile(arrays["roots"], (len(some), 1)), None
        while before is None or (node != before).any():
            left = some[rows, arrays["feature"][node]] <= arrays["threshold"][node]
            before, node = node, np.where(left, arrays["left"][node], arrays["right"][node])
        for leaf in node.T:  # tree by tree, in scikit-learn's order
            total[first : first + SIZE] += arrays["share"][leaf]
    return total


def log_shares(total: np.ndarray, trees: int, several: bool = False) -> np.ndarray:
    """Log-probabilities; one more tree that holds all classes for equally likely, or where a sample
    has `several` each for as likely as not, rules none out. Shape: (N, K) votes -> (N, K)."""
    return np.log((total + (0.5 if several else 1 / total.shape[1])) / (trees + 1))
