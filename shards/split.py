"""Grouped, stratified folds and train / val / test parts, the same for the same seed.

Shapes: `R` recordings. Groups, not recordings, are dealt out: nothing of one group is on two sides.
"""

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from shards.allotment import allot
from shards.errors import UserError
from shards.index import SPLITS
from shards.labels import SEPARATOR, classes_of, names, natural, nfc
from shards.recording import Recording

logger = logging.getLogger(__name__)

Parts = tuple[float, float, float]

MOVES = 1000  # of groups, in search of folds that have every class


def parse_parts(text: str) -> Parts:
    """`0.7,0.15,0.15` as the shares of train, val and test.

    Raises:
        UserError: not three shares that add up to 1, or nothing to train on.
    """
    try:
        train, val, test = (float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--split={text}: expected three shares, as in 0.7,0.15,0.15") from None
    if not (train > 0 and val >= 0 and test >= 0 and abs(train + val + test - 1) < 1e-6):
        raise UserError(f"--split={text}: train (above 0), val and test have to add up to 1")
    return train, val, test


def assign(
    recordings: Sequence[Recording], folds: int | None, parts: Parts | None, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Deal recordings into folds and into train / val / test.

    Folds and parts that the recordings already name (`--fold_from`, `--split_from`) are taken as
    they are. Without `folds` all fold numbers are 0, without `parts` all are train. The order of
    `recordings` makes no difference.

    Returns:
        fold (R,) int, split (R,) int (a number into SPLITS), and how they were made, in words.

    Raises:
        UserError: a class with fewer groups than folds or parts, or a group in two given ones.
    """
    order = sorted(range(len(recordings)), key=lambda n: (nfc(recordings[n].path), n))
    ordered = [recordings[n] for n in order]
    holders, labels = held_classes(ordered)
    groups = numbered(r.group for r in ordered)
    fold, split = np.zeros((2, len(ordered)), np.int64)
    methods = []
    if ordered[0].fold is not None:
        fold = given(ordered, "fold", fold_names(ordered, None))
        methods.append("folds as given")
    elif folds:
        check_groups(ordered, folds, f"--folds={folds}")
        strata = numbered(strata_of(ordered, folds))
        fold, method = deal_folds(strata, groups, holders, labels, folds, seed)
        methods.append(f"folds by {method}")
    if ordered[0].split is not None:
        split = given(ordered, "split", list(SPLITS))
        check_trained(ordered)
        methods.append("split as given")
    elif parts:
        check_groups(ordered, sum(part > 0 for part in parts), "--split")
        split[holders] = allot(labels, groups[holders], parts, seed)
        methods.append("split by stratified allotment of groups")
    if names_of_folds := fold_names(ordered, folds):
        tell_gaps(fold[holders], labels, ordered, names_of_folds)
    back = np.argsort(order)
    return fold[back], split[back], ", ".join(methods)


def dealt(
    recordings: Sequence[Recording], folds: int | None, parts: Parts | None, seed: int
) -> tuple[list[Recording], list[str], str]:
    """The recordings with their folds and parts, the names of the folds, and how: see `assign`."""
    fold, split, method = assign(recordings, folds, parts, seed)
    names_of_folds = fold_names(recordings, folds)
    named: list[str | None] = [*names_of_folds] or [None]
    at = Recording._fields.index("fold")
    placed = [  # `_replace` takes three times as long
        Recording._make((*r[:at], named[f], SPLITS[s], *r[at + 2 :]))
        for r, f, s in zip(recordings, fold.tolist(), split.tolist(), strict=True)
    ]
    return placed, names_of_folds, method


def fold_names(recordings: Sequence[Recording], folds: int | None) -> list[str]:
    """The names of the folds in the order of their numbers; given ones sorted as people count."""
    told = {r.fold for r in recordings if r.fold is not None}
    return sorted(told, key=natural) if told else [str(n + 1) for n in range(folds or 0)]


def numbered(words: Iterable[str]) -> np.ndarray:
    """(R,) numbers for words, in the order in which the words first appear."""
    numbers: dict[str, int] = {}
    found = (numbers.setdefault(word, len(numbers)) for word in words)
    return np.fromiter(found, np.int64)


def held_classes(recordings: Sequence[Recording]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a recording's number and the number of a class of it, as two arrays (pairs,)."""
    known = {label: names(label) for label in {r.label for r in recordings}}
    counts = np.fromiter((len(known[r.label]) for r in recordings), np.int64)
    held = numbered(name for r in recordings for name in known[r.label])
    return np.repeat(np.arange(len(recordings)), counts), held


def strata_of(recordings: Sequence[Recording], pieces: int) -> list[str]:
    """(R,) what folds are stratified by: the label, several classes in any order being the same.

    Several classes with fewer groups than `pieces` count as the rarest of them.
    """
    classes = {label: tuple(sorted(names(label))) for label in {r.label for r in recordings}}
    count = Counter(name for r in recordings for name in classes[r.label])
    groups: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for r in recordings:
        groups[classes[r.label]].add(r.group)
    stratum = {
        label: min(some, key=lambda name: (count[name], name))
        if len(groups[some]) < pieces
        else SEPARATOR.join(some)
        for label, some in classes.items()
    }
    return [stratum[r.label] for r in recordings]


def given(recordings: Sequence[Recording], kind: str, names: Sequence[str]) -> np.ndarray:
    """(R,) numbers of the folds or parts that file names give.

    Raises:
        UserError: a name that is none of `names`, a group in two of them, or one fold only.
    """
    if len(names) < 2:
        raise UserError(
            f"--{kind}_from: every file is in {kind} {names[0]!r}; change the pattern so that it "
            "finds at least two"
        )
    first: dict[str, str] = {}
    for r in recordings:
        told = str(getattr(r, kind))
        if told not in names:
            raise UserError(
                f"--{kind}_from: {told!r} in {r.path!r}; expected one of {', '.join(names)}"
            )
        if first.setdefault(r.group, told) != told:
            raise UserError(
                f"group {r.group!r} is in {kind}s {first[r.group]!r} and {told!r}; a group has to "
                f"stay on one side, so change --group_from or --{kind}_from"
            )
    return np.array([names.index(str(getattr(r, kind))) for r in recordings], np.int64)


def check_trained(recordings: Sequence[Recording]) -> None:
    """Raise a UserError that names a class of which the given train part has nothing."""
    taught = classes_of(r.label for r in recordings if r.split == "train")
    untaught = set(classes_of(r.label for r in recordings)) - set(taught)
    if untaught:
        raise UserError(
            f"--split_from: class {min(untaught, key=natural)!r} has no recording in train; "
            "change the pattern or take the class away"
        )


def check_groups(recordings: Sequence[Recording], pieces: int, flag: str) -> None:
    """Raise a UserError that names a class with fewer groups than `pieces`."""
    groups: dict[str, set[str]] = defaultdict(set)
    for r in recordings:
        for name in names(r.label):
            groups[name].add(r.group)
    label = min(sorted(groups, key=natural), key=lambda name: len(groups[name]))
    n = len(groups[label])
    if n < pieces:
        fewer = f"ask for at most {n}, " if flag.startswith("--folds") and n > 1 else ""
        raise UserError(
            f"class {label!r} has {n} group{'s' * (n != 1)} of recordings, {flag} needs {pieces}; "
            f"{fewer}add recordings or take the class away"
        )


def tell_gaps(
    fold: np.ndarray, labels: np.ndarray, recordings: Sequence[Recording], folds: Sequence[str]
) -> None:
    """Warn of classes that are missing from a fold: groups may reach into too many classes."""
    classes = list(dict.fromkeys(name for r in recordings for name in names(r.label)))
    held = np.zeros((len(folds), len(classes)), bool)
    held[fold, labels] = True
    gaps = [f"fold {folds[f]} has nothing of {classes[k]!r}" for f, k in np.argwhere(~held)]
    if gaps:
        more = f" and {len(gaps) - 3} more" if len(gaps) > 3 else ""
        logger.warning(
            "%s%s; scores of such a fold leave classes out: ask for fewer folds or smaller groups",
            ", ".join(gaps[:3]),
            more,
        )


def deal_folds(
    strata: np.ndarray,
    groups: np.ndarray,
    holders: np.ndarray,
    labels: np.ndarray,
    folds: int,
    seed: int,
) -> tuple[np.ndarray, str]:
    """(R,) fold numbers, and the name of the method; every class in every fold if it can be had.

    Shapes: strata, groups (R,); holders, labels (pairs,), see `held_classes`.
    """
    alone = len(np.unique(groups)) == len(groups)
    fold = stratified(strata, None if alone else groups, folds, seed)
    if alone and len(labels) == len(groups):  # single labels: there are no gaps
        return fold, "StratifiedKFold"
    spread = fold.copy()
    spread[holders] = fill_gaps(fold[holders], labels, groups[holders], folds, seed)
    method = "StratifiedKFold" if alone else "StratifiedGroupKFold"
    return spread, method + " and moves that fill gaps" * bool((spread != fold).any())


def fill_gaps(
    fold: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """(R,) fold numbers with the fewest classes missing from folds that a random walk finds.

    StratifiedGroupKFold evens out shares; where groups reach into several classes, a fold can end
    up without a rare one. Each step moves a group into a fold that lacks a class of it, the group
    that opens the fewest new gaps (the walk of WalkSAT; Selman, Kautz and Cohen, 1994).
    """
    holds = np.zeros((groups.max() + 1, labels.max() + 1), bool)
    holds[groups, labels] = True
    now = np.empty(len(holds), np.int64)
    now[groups] = fold
    held = np.stack([holds[now == f].sum(axis=0) for f in range(folds)])  # groups, (fold, class)
    random = np.random.default_rng(seed)
    best, fewest = now.copy(), int((held == 0).sum())
    for _ in range(MOVES):
        if fewest == 0:
            break
        to, label = random.choice(np.argwhere(held == 0))
        free = np.flatnonzero(holds[:, label])
        opened = (holds[free] & (held[now[free]] == 1)).sum(axis=1)
        filled = (holds[free] & (held[to] == 0)).sum(axis=1)
        group = free[np.argmin(opened - filled + random.random(len(free)))]
        held[now[group]] -= holds[group]
        held[to] += holds[group]
        now[group] = to
        if (gaps := int((held == 0).sum())) < fewest:
            best, fewest = now.copy(), gaps
    return best[groups]


def stratified(labels: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """(R,) fold numbers from scikit-learn."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    fold = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():  # of strata smaller than the folds: gaps are filled after it
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, test) in enumerate(splitter.split(labels, labels, groups)):
            fold[test] = number
    return fold
