"""Copies dealt with before there are folds; for that every recording is heard once more."""

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np

from shards.duplicates import Pair, Prints, find_copies
from shards.errors import UserError
from shards.manifest import Scan
from shards.progress import Progress
from shards.recipe import Recipe
from shards.recording import Recording, Reject, runs_of
from shards.workers import ordered
from shards.write import rejection

logger = logging.getLogger(__name__)

RULES = ("warn", "group", "drop")


class Heard(NamedTuple):
    """What a worker hands back of a recording."""

    xxh3: list[int]
    grains: np.ndarray  # (S, G, B) int8


def hear(recipe: Recipe, recording: Recording) -> Heard | None:
    """The fingerprint of a recording, or None where it cannot be used."""
    features = recipe.extract(recording.piece)
    if isinstance(features, Reject):
        return None
    return Heard(features.xxh3, features.grains)


def without_leaks(found: Scan, recipe: Recipe, rule: str, workers: int, timeout: float) -> Scan:
    """The recordings with copies put into one group (`group`), or but the first of them (`drop`).

    Raises:
        UserError: the copies that are to be one group stand in different folds or parts as given.
    """
    pairs = copies(found.recordings, recipe, workers, timeout)
    label = [recording.label for recording in found.recordings]
    other = sum(label[pair.first] != label[pair.second] for pair in pairs)
    told = f"{len(pairs)} pairs of copies" + f", {other} with different labels" * bool(other)
    logger.info("duplicates   %s; --on_duplicate=%s", told, rule)
    if rule == "group":
        return found._replace(recordings=grouped(found.recordings, pairs))
    first = firsts(pairs)
    kept = [r for n, r in enumerate(found.recordings) if n not in first]
    dropped = [
        rejection(found.recordings[n], f"a copy of {found.recordings[other].path}")
        for n, other in first.items()
    ]
    return found._replace(recordings=kept, rejected=[*found.rejected, *dropped])


def copies(
    recordings: Sequence[Recording], recipe: Recipe, workers: int, timeout: float
) -> list[Pair]:
    """The pairs of copies among the recordings, by their places."""
    workers = max(1, min(workers, len(recordings)))
    outcomes = ordered(
        partial(hear, recipe),
        runs_of(recordings, lambda recording: recording, workers),
        workers,
        timeout=timeout,
        lost=lambda recording, reason: None,
    )
    heard: dict[int, Heard] = {}
    with closing(outcomes), Progress("copies", len(recordings), 0) as progress:
        for n, outcome in enumerate(outcomes):
            progress.update(recordings[n].seconds)
            if outcome is not None:
                heard[n] = outcome
    if not heard:
        return []
    xxh3 = np.concatenate([np.array(one.xxh3, np.uint64) for one in heard.values()])
    owner = np.repeat(list(heard), [len(one.xxh3) for one in heard.values()])
    grains = np.concatenate([one.grains for one in heard.values()])
    heard.clear()  # or they would be held twice
    return find_copies(Prints(owner, xxh3, grains, recipe.length / recipe.mel.sample_rate))


def firsts(pairs: Sequence[Pair]) -> dict[int, int]:
    """For each recording to drop, the first kept one that it is a copy of."""
    dropped: dict[int, int] = {}
    for first, second, *_ in sorted(pairs, key=lambda pair: (pair.second, pair.first)):
        if first not in dropped:
            dropped.setdefault(second, first)
    return dropped


def grouped(recordings: Sequence[Recording], pairs: Sequence[Pair]) -> list[Recording]:
    """The recordings with the groups of copies made one, under the name of the first."""
    into: dict[str, str] = {}

    def root(group: str) -> str:
        while group in into:
            group = into[group]
        return group

    for pair in sorted(pairs):
        a, b = recordings[pair.first], recordings[pair.second]
        for kind in ("fold", "split"):
            given = getattr(a, kind), getattr(b, kind)
            if given[0] != given[1]:
                raise UserError(
                    f"--on_duplicate=group: {a.path!r} and {b.path!r} are copies, but --{kind}_from"
                    f" puts them into {given[0]} and {given[1]}; --on_duplicate=drop keeps one"
                )
        one, other = root(a.group), root(b.group)
        if one != other:
            into[other] = one
    return [r._replace(group=root(r.group)) for r in recordings]
