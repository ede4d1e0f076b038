"""Properties of recordings that give their class away: how it was recorded, not what is heard.

Shapes: `R` recordings, `C` columns of a property.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import splitext
from typing import Any

import numpy as np

from shards.acoustics import Acoustics
from shards.index import ShardSet

RECORDINGS = 5000  # looked at, evenly over the set
FOLDS, PERMUTATIONS = 5, 20
#: A property is a shortcut if it beats chance by more than this, or tells one class from all others
#: that well, and lies so many standard deviations above what it gets for permuted labels.
GAIN, ONE_CLASS, DEVIATIONS = 0.2, 0.9, 3.0
Fold = tuple[np.ndarray, np.ndarray]  # the numbers to train on and to test on
SAID = ("sample_rate", "channels", "seconds")
HEARD = (*Acoustics._fields, "seconds")  # may belong to what a class is


def find_shortcuts(shard_set: ShardSet) -> list[dict[str, Any]]:
    """The properties that tell classes apart by themselves, as dataset.json keeps them.

    A decision tree of one property, as deep as the number of classes asks for, at least 2, is
    cross-validated over groups. Nothing is said of a class of a single group, nor of a set whose
    recordings may have several.
    """
    if shard_set.is_multi_label:
        return []
    count = shard_set.info["recordings"]
    chosen = np.linspace(0, count - 1, min(RECORDINGS, count)).astype(int)
    lines = list(shard_set.lines_of(chosen.tolist()).values())
    columns = properties(lines)
    groups_of: dict[str, set[str]] = {}
    for line in lines:
        groups_of.setdefault(line["label"], set()).add(line["group"])
    kept = np.array([len(groups_of[line["label"]]) > 1 for line in lines])
    names = sorted(name for name, groups in groups_of.items() if len(groups) > 1)
    if len(names) < 2:
        return []
    labels = np.array([names.index(x["label"]) for x, k in zip(lines, kept, strict=True) if k])
    groups = np.unique([x["group"] for x in lines], return_inverse=True)[1][kept]
    folds = deal(labels, groups)
    found = (judge(values[kept], labels, groups, folds) for values in columns.values())
    return [
        {"property": name, **verdict, "class": None if one is None else names[one]}
        for name, (verdict, one) in zip(columns, found, strict=True)
        if verdict
    ]


def properties(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """(R, C) of each property that recordings.jsonl gives; a container is a column each."""
    told = {name: [line.get(name) for line in lines] for name in (*SAID, *Acoustics._fields)}
    columns = {  # a converted set may not know
        name: np.array(some, float)[:, None] for name, some in told.items() if None not in some
    }
    suffixes = [splitext(line["path"])[1].lower() for line in lines]
    kinds = np.unique(suffixes)
    return columns | {"container": np.array(suffixes)[:, None] == kinds[None]}


def judge(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: Sequence[Fold]
) -> tuple[dict[str, float], int | None]:
    """How well (R, C) values tell the labels, if suspiciously well, and the class if it is one."""
    if np.ptp(values.astype(float), axis=0).max() == 0:
        return {}, None
    hits, chance = recalls(values, labels, folds), 1 / (labels.max() + 1)
    one = int(hits.mean(axis=0).argmax())
    if hits[0].mean() - chance > GAIN:
        which, measure = None, lambda hits: float(hits[0].mean())
    elif hits[:, one].mean() > ONE_CLASS:
        which, chance, measure = one, 0.5, lambda hits: float(hits.mean(axis=0).max())
    else:
        return {}, None
    permuted = (recalls(values, other, folds) for other in permutations(labels, groups))
    by_chance = [measure(hits) for hits in permuted]
    accuracy = measure(hits)
    if accuracy <= np.mean(by_chance) + DEVIATIONS * np.std(by_chance):
        return {}, None
    return {"balanced_accuracy": round(accuracy, 4), "chance": round(chance, 4)}, which


def deal(labels: np.ndarray, groups: np.ndarray) -> list[Fold]:
    """Folds to judge by; a group is in one fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    fewest = min(len(np.unique(groups[labels == k])) for k in range(labels.max() + 1))
    alone = len(np.unique(groups)) == len(groups)  # the other one takes 0.2 ms a group
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    folds = kind(max(2, min(FOLDS, fewest)), shuffle=True, random_state=0)
    return list(folds.split(labels, labels, None if alone else groups))


def recalls(values: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """(2, K): out of fold, the share of each class that is told, and of the others that is not."""
    from sklearn.tree import DecisionTreeClassifier

    classes = int(labels.max()) + 1
    depth = max(2, math.ceil(math.log2(classes)))
    tree, told = DecisionTreeClassifier(max_depth=depth, random_state=0), np.full(len(labels), -1)
    x = values.astype(np.float32)  # as the tree wants them: it need not look
    for train, test in folds:
        known = labels[train]
        count = np.bincount(known)  # balanced as sklearn does it, in a tenth of the time
        weights = len(known) / (np.count_nonzero(count) * count[known])
        tree.fit(x[train], known, weights, check_input=False)
        told[test] = tree.predict(x[test], check_input=False)
    hit = [(told[labels == k] == k).mean() for k in range(classes)]
    missed = [(told[labels != k] != k).mean() for k in range(classes)]
    return np.array([hit, missed])


def permutations(labels: np.ndarray, groups: np.ndarray) -> Iterator[np.ndarray]:
    """Labels dealt anew: to whole groups where each has one class, or else to recordings."""
    random = np.random.default_rng(0)
    _, first, of = np.unique(groups, return_index=True, return_inverse=True)
    pure = bool((labels[first][of] == labels).all())
    for _ in range(PERMUTATIONS):
        yield random.permutation(labels[first])[of] if pure else random.permutation(labels)


def describe(shortcuts: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line a shortcut, for people."""
    return [
        f"shortcut    {x['property']} alone tells "
        + (f"class {x['class']!r} from the others" if x["class"] else "the classes apart")
        + f" with balanced accuracy {x['balanced_accuracy']:.2f} (chance {x['chance']:.2f}): a "
        + "detector trained on this may listen to that"
        + (", unless the classes are so by nature" if x["property"] in HEARD else "")
        for x in shortcuts
    ]
