"""Folds and parts: nothing on two sides, every class everywhere, shares as asked."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from shards.index import SPLITS
from shards.recording import Recording
from shards.split import allot, assign, fold_names, parse_parts

PARTS = (0.7, 0.15, 0.15)


def recording(path: str, label: str, group: str | None = None, **named: str) -> Recording:
    header = {"frames": 1, "sample_rate": 1, "channels": 1}
    return Recording(path=path, label=label, group=group or path, **named, **header)  # type: ignore[arg-type]


def manifest(seed: int, shared: bool) -> list[Recording]:
    """Classes of at least 6 unequal groups; `shared`: groups also reach into other classes."""
    random = np.random.default_rng(seed)
    found = []
    for c in range(random.integers(2, 6)):
        for g in range(random.integers(6, 15)):
            for n in range(random.integers(1, 6)):
                name = f"g{g}" if shared and random.random() < 0.5 else f"{c}g{g}"
                found.append(recording(f"{c}/{g}-{n}.wav", str(c), name))
    return found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), folds=st.integers(2, 5), shared=st.booleans())
def test_any_manifest(seed: int, folds: int, shared: bool) -> None:
    recordings = manifest(seed, shared)
    fold, split, _ = assign(recordings, folds, PARTS, seed)

    for sides, count in ((fold, folds), (split, 3)):
        assert len(sides) == len(recordings) and set(sides) <= set(range(count))
        of_group = defaultdict(set)
        for r, side in zip(recordings, sides, strict=True):
            of_group[r.group].add(side)
        assert all(len(found) == 1 for found in of_group.values())
    labels = {r.label for r in recordings}
    assert {r.label for r, s in zip(recordings, split, strict=True) if s == 0} == labels
    if not shared:
        pairs = {(r.label, f) for r, f in zip(recordings, fold, strict=True)}
        assert len(pairs) == len(labels) * folds
        assert len({(r.label, s) for r, s in zip(recordings, split, strict=True)}) == 3 * len(
            labels
        )

    shuffled = np.random.default_rng(seed).permutation(len(recordings))
    again = assign([recordings[n] for n in shuffled], folds, PARTS, seed)
    assert (again[0] == fold[shuffled]).all() and (again[1] == split[shuffled]).all()


@pytest.mark.parametrize("per_group", [1, 2])
def test_shares_follow_where_groups_are_small(per_group: int) -> None:
    recordings = [
        recording(f"{c}/{n}.wav", c, f"{c}{n // per_group}")
        for c, count in (("a", 40), ("b", 100), ("c", 200))
        for n in range(count)
    ]
    fold, split, _ = assign(recordings, 5, PARTS, 0)
    folds = Counter((r.label, f) for r, f in zip(recordings, fold.tolist(), strict=True))
    parts = Counter((r.label, s) for r, s in zip(recordings, split.tolist(), strict=True))
    for label, count in (("a", 40), ("b", 100), ("c", 200)):
        for n in range(5):
            assert abs(folds[label, n] - count / 5) <= per_group
        for n, share in enumerate(PARTS):
            assert abs(parts[label, n] - count * share) <= per_group


def test_speakers_who_say_everything() -> None:
    recordings = [
        recording(f"{c}/s{s}-{n}.wav", str(c), f"s{s}")
        for c in range(10)
        for s in range(60)
        for n in range(2)
    ]
    fold, split, method = assign(recordings, 5, PARTS, 1)
    assert np.bincount(fold).tolist() == [240] * 5
    assert np.bincount(split).tolist() == [42 * 20, 9 * 20, 9 * 20]
    assert "StratifiedGroupKFold" in method


def test_the_largest_group_trains() -> None:
    groups = np.array([0] * 50 + [1] * 3 + [2] * 3)
    part = allot(np.zeros(56, np.int64), groups, PARTS, seed=0)
    assert set(part[:50]) == {0} and {part[50], part[53]} == {1, 2}


@pytest.mark.parametrize("seed", range(25))
def test_every_fold_has_every_class_if_it_can_be_had(seed: int) -> None:
    # Up to 7 groups that reach into several classes: every dealing can be tried.
    random = np.random.default_rng(seed)
    classes, folds = int(random.integers(2, 6)), int(random.integers(2, 4))
    recordings = [
        recording(f"{c}/{g}-{n}.wav", str(c), str(g))
        for c in range(classes)
        for g in random.choice(7, random.integers(folds, 8), replace=False)
        for n in range(random.choice([1, 2, 30]))
    ]
    holds = np.zeros((7, classes), bool)
    for r in recordings:
        holds[int(r.group), int(r.label)] = True
    dealings = np.array(list(itertools.product(range(folds), repeat=7)))
    filled = [((dealings == f) @ holds).sum(axis=1) for f in range(folds)]
    fold, _, _ = assign(recordings, folds, None, seed)
    assert len({(r.label, f) for r, f in zip(recordings, fold, strict=True)}) == np.max(sum(filled))


def test_a_fold_without_a_class_is_told(caplog: pytest.LogCaptureFixture) -> None:
    # Two groups hold a and b, two hold a alone: three folds cannot all have b.
    recordings = [recording(f"a/{g}.wav", "a", g) for g in "pqrs"]
    recordings += [recording(f"b/{g}{n}.wav", "b", g) for g in "pq" for n in range(2)]
    folds = [r._replace(fold=str("pqrs".index(r.group) % 3)) for r in recordings]
    assign(folds, None, None, 0)
    assert "fold 2 has nothing of 'b'; scores of such a fold" in caplog.text
    caplog.clear()
    assign(recordings, 2, None, 0)
    assert not caplog.text


def test_seeds_differ() -> None:
    recordings = manifest(0, shared=False)
    one, other = (assign(recordings, 5, PARTS, seed) for seed in (0, 1))
    assert (one[0] != other[0]).any() and (one[1] != other[1]).any()


def test_parts_of_zero_stay_empty() -> None:
    recordings = manifest(0, shared=False)
    _, split, _ = assign(recordings, None, (0.8, 0.0, 0.2), 0)
    assert set(split) == {0, 2}
    fold, split, _ = assign(recordings, None, None, 0)
    assert not fold.any() and not split.any()


def test_given_folds_are_counted_as_people_count() -> None:
    recordings = [recording(f"{c}/{n}.wav", c, fold=str(n)) for c in "ab" for n in range(1, 12)]
    assert fold_names(recordings, None) == [str(n) for n in range(1, 12)]
    fold, _, method = assign(recordings, None, None, 0)
    assert fold.tolist() == 2 * list(range(11)) and method == "folds as given"
    assert fold_names(manifest(0, shared=False), 3) == ["1", "2", "3"]


def test_given_parts() -> None:
    recordings = [recording(f"{c}/{n}.wav", c, split=n) for c in "ab" for n in SPLITS]
    assert assign(recordings, None, None, 0)[1].tolist() == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "g", "fold": None}, "group 'g' is in folds '1' and '2'"),
        ({"fold": "1"}, "every file is in fold '1'"),
        ({"fold": None, "split": "tain"}, "'tain' in 'a/1.wav'"),
        ({"fold": None, "split": "val"}, "class 'a' has no recording in train"),
    ],
)
def test_given_names_that_cannot_be(change: dict[str, str | None], message: str) -> None:
    recordings = []
    for n in (1, 2):
        words = {"fold": str(n)} | {k: v for k, v in change.items() if v is not None}
        if "split" in words:
            words.pop("fold")
        recordings.append(recording(f"a/{n}.wav", "a", **words))
    with pytest.raises(UserError) as error:
        assign(recordings, None, None, 0)
    assert message in str(error.value)


def test_too_few_groups_names_the_class() -> None:
    recordings = [recording(f"a/{n}.wav", "a") for n in range(9)]
    recordings += [recording(f"b/{n}.wav", "b", f"s{n // 3}") for n in range(9)]
    with pytest.raises(UserError, match=r"class 'b' has 3 groups .* --folds=5 needs 5; ask for at"):
        assign(recordings, 5, None, 0)
    with pytest.raises(UserError, match=r"class 'b' has 1 group of recordings, --split needs 3"):
        assign(recordings[:12], None, PARTS, 0)


def test_parse_parts() -> None:
    assert parse_parts("0.7,0.15,0.15") == PARTS
    assert parse_parts("1,0,0") == (1, 0, 0)
    for text in ("0.8,0.2", "0,0.5,0.5", "0.7,0.2,0.2", "a,b,c", "1.2,-0.1,-0.1", "nan,0,0"):
        with pytest.raises(UserError, match="--split="):
            parse_parts(text)
