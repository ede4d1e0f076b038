"""Grouped, stratified folds and train / val / test parts, the same for the same seed.

Shapes: `R` recordings. Groups, not recordings, are dealt out: nothing of one group is on two sides.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from shards.errors import UserError
from shards.index import SPLITS
from shards.manifest import Recording, natural, nfc

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
    labels = numbered(r.label for r in ordered)
    groups = numbered(r.group for r in ordered)
    fold, split = np.zeros((2, len(ordered)), np.int64)
    methods = []
    if ordered[0].fold is not None:
        fold = given(ordered, "fold", fold_names(ordered, None))
        methods.append("folds as given")
    elif folds:
        check_groups(ordered, folds, f"--folds={folds}")
        fold, method = deal_folds(labels, groups, folds, seed)
        methods.append(f"folds by {method}")
    if ordered[0].split is not None:
        split = given(ordered, "split", list(SPLITS))
        check_trained(ordered)
        methods.append("split as given")
    elif parts:
        check_groups(ordered, sum(part > 0 for part in parts), "--split")
        split = allot(labels, groups, parts, seed)
        methods.append("split by stratified allotment of groups")
    back = np.argsort(order)
    return fold[back], split[back], ", ".join(methods)


def fold_names(recordings: Sequence[Recording], folds: int | None) -> list[str]:
    """The names of the folds in the order of their numbers; given ones sorted as people count."""
    told = {r.fold for r in recordings if r.fold is not None}
    return sorted(told, key=natural) if told else [str(n + 1) for n in range(folds or 0)]


def numbered(names: Iterable[str]) -> np.ndarray:
    """(R,) numbers for names, in the order in which the names first appear."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


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
    untaught = {r.label for r in recordings} - {r.label for r in recordings if r.split == "train"}
    if untaught:
        raise UserError(
            f"--split_from: class {min(untaught, key=natural)!r} has no recording in train; "
            "change the pattern or take the class away"
        )


def check_groups(recordings: Sequence[Recording], pieces: int, flag: str) -> None:
    """Raise a UserError that names a class with fewer groups than `pieces`."""
    groups: dict[str, set[str]] = defaultdict(set)
    for r in recordings:
        groups[r.label].add(r.group)
    label = min(sorted(groups, key=natural), key=lambda name: len(groups[name]))
    n = len(groups[label])
    if n < pieces:
        fewer = f"ask for at most {n}, " if flag.startswith("--folds") and n > 1 else ""
        raise UserError(
            f"class {label!r} has {n} group{'s' * (n != 1)} of recordings, {flag} needs {pieces}; "
            f"{fewer}add recordings or take the class away"
        )


def deal_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, str]:
    """(R,) fold numbers, and the name of the method; every class in every fold if it can be had."""
    if len(np.unique(groups)) == len(groups):
        return stratified(labels, None, folds, seed), "StratifiedKFold"
    fold = stratified(labels, groups, folds, seed)
    spread = fill_gaps(fold, labels, groups, folds, seed)
    moved = (spread != fold).any()
    return spread, "StratifiedGroupKFold" + " and moves that fill gaps" * bool(moved)


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
    for number, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        fold[test] = number
    return fold


def allot(
    labels: np.ndarray, groups: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """(R,) part numbers: whole groups dealt so that each part has its fraction of every class.

    First each part gets one group of every class that still has a free one, train before the others
    so that it has every class; then the groups, large ones first, go where they bring the
    shares of their classes nearest to `fractions`, in squares weighted by 1 / fraction.
    """
    parts = [n for n, fraction in enumerate(fractions) if fraction > 0]
    weights = class_shares(labels, groups)
    shares: list[list[float]] = np.zeros((len(fractions), labels.max() + 1)).tolist()
    part_of: dict[int, int] = {}

    def cost(group: int, part: int) -> float:
        of, f = shares[part], fractions[part]
        return sum(w * (w + 2 * (of[label] - f)) for label, w in weights[group].items()) / f

    def put(group: int, part: int) -> None:
        part_of[group] = part
        for label, w in weights[group].items():
            shares[part][label] += w

    shuffled = np.random.default_rng(seed).permutation(len(weights)).tolist()
    shuffled.sort(key=lambda group: -sum(weights[group].values()))
    having: dict[int, list[int]] = defaultdict(list)
    for group in shuffled:
        for label in weights[group]:
            having[label].append(group)
    for part in parts:
        for label in sorted(having, key=lambda label: (len(having[label]), label)):
            free = [group for group in having[label] if group not in part_of]
            if shares[part][label] == 0 and free:
                put(min(free, key=lambda group: cost(group, part)), part)
    for group in shuffled:
        if group not in part_of:
            put(group, min(parts, key=lambda part: cost(group, part)))
    return np.array([part_of[group] for group in groups.tolist()], np.int64)


def class_shares(labels: np.ndarray, groups: np.ndarray) -> list[dict[int, float]]:
    """For each group, the share that it holds of each of its classes."""
    totals = np.bincount(labels)
    weights: list[dict[int, float]] = [{} for _ in range(groups.max() + 1)]
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    for group, label, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        weights[group][label] = count / totals[label]
    return weights
