"""Order as arithmetic, swept over sizes, ranks, microbatches and resumes."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import shards.draws
from shards import randomness
from shards.draws import Full, Grouped, Stored, Weighted, Window
from shards.errors import UserError
from shards.order import Order, plan_batch, share
from shards.randomness import key, permute, uniform

compiled = pytest.mark.skipif(randomness.compiled is None, reason="no compiled kernel here")


@pytest.fixture(params=[pytest.param("compiled", marks=compiled), "numpy"])
def how(request, monkeypatch):
    """Both ways to the same numbers."""
    if request.param == "numpy":
        monkeypatch.setattr(randomness, "compiled", None)
        monkeypatch.setattr(shards.draws, "count", None)
        monkeypatch.setattr(shards.draws, "locate", None)


SIZES = [1, 2, 3, 7, 64, 101, 1000]


@pytest.mark.parametrize("n", [*SIZES, 65_537])
def test_permute_is_a_bijection_and_changes_with_its_key(n):
    positions = np.arange(n)
    images = permute(positions, n, key(7, 0))
    assert np.array_equal(np.sort(images), positions)
    assert np.array_equal(permute(positions[::3], n, key(7, 0)), images[::3])
    if n > 7:
        assert not np.array_equal(images, permute(positions, n, key(7, 1)))
        assert not np.array_equal(images, permute(positions, n, key(8, 0)))


def test_permute_of_more_than_a_word_and_of_a_size_and_key_each():
    for n in (2**32 - 5, 2**32, 2**40 + 1):
        images = permute(np.arange(n - 5000, n), n, key(1))
        assert len(np.unique(images)) == 5000 and images.min() >= 0 and images.max() < n
        assert images.max() - images.min() > n / 2
    sizes, keys = np.arange(1, 300), key(4, np.arange(299))
    images = permute(sizes // 2, sizes, keys)
    for size, one, image in zip(sizes.tolist(), keys, images, strict=True):
        assert permute(np.array([size // 2]), size, one)[0] == image


def one_by_one(position, n, key):
    """The network over a x b >= n that adds modulo a and b in turn, in Python's own integers."""
    a = math.isqrt(n - 1) + 1
    b = (n - 1) // a + 1
    turns = [key * odd % 2**64 >> 32 for odd in randomness._MULTIPLIERS.tolist()]
    while True:
        left, right, parts = position // b, position % b, (a, b)
        for number, (added, factor) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
            h = (right + added) * (factor | 1) % 2**32
            h = (h ^ h >> 15) * 0x7F4A7C15 % 2**32 >> 16
            part = parts[number % 2]
            left, right = right, (left + (h * part >> 16)) % part
        position = left * b + right
        if position < n:
            return position


def test_permute_is_the_network_that_it_says_it_is(how):
    random = np.random.default_rng(0)
    sizes = np.append([1, 2, 3, 2**32 - 1], 2 ** random.uniform(0, 32, 300)).astype(np.int64)
    positions = (random.random(304) * sizes).astype(np.int64)
    keys = key(5, np.arange(304) // 3)
    expected = [
        one_by_one(*x) for x in zip(*(v.tolist() for v in (positions, sizes, keys)), strict=True)
    ]
    assert permute(positions, sizes, keys).tolist() == expected
    assert permute(positions[:1], sizes[:1], keys[:1]).tolist() == expected[:1]
    same = [one_by_one(position, 1000, int(keys[0])) for position in range(0, 1000, 7)]
    assert permute(np.arange(0, 1000, 7), 1000, keys[:1]).tolist() == same


def test_orders_are_those_of_all_versions(how):
    """Whoever trains again gets the batches of before: a digest of what the first version drew."""
    digest = hashlib.sha256()
    for n in (31, 1009, 100_003):
        random = uniform((9,), np.arange(n), 1)[:, 0]
        bounds = np.concatenate([[0], np.sort((random[:30] * n).astype(int)), [n]])
        sizes, weights = np.diff(bounds), np.where(random > 0.2, random**3, 0)
        for draw in (
            Full(n, 11),
            Window(bounds, 3, 11),
            Grouped(sizes, np.arange(1.0, len(bounds)), 11),
            Weighted([weights], n, n // 3 + 1, 11),
        ):
            for first in (0, n - 3, 10**12):
                positions = first + np.arange(2000)
                digest.update(draw(positions).astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "62c6f0e7c17e067c"


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 16])
def test_small_permutations_are_even(n):
    """Where the first two of n land, over 20,000 keys: chi-squared against all pairs alike."""
    keys = key(2, np.arange(20_000))
    first, second = (permute(np.full(20_000, place), n, keys) for place in (0, n - 1))
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)
    assert not counts.diagonal().any()
    pairs, expected = n * (n - 1), 20_000 / (n * (n - 1))
    statistic = ((counts[~np.eye(n, dtype=bool)] - expected) ** 2 / expected).sum()
    assert statistic < pairs - 1 + 5 * np.sqrt(2 * (pairs - 1)) + 5


def draws(n, length):
    """Every kind of draw over n samples in epochs of `length`, by name."""
    bounds = np.linspace(0, n, 8).astype(int)
    sizes = np.diff(np.linspace(0, n, 4).astype(int))
    weights = uniform((3,), np.arange(n), 1)[:, 0]
    return {
        "full": None,
        "window": Window(bounds, 2, 11) if n else None,
        "none": Stored(n),
        "class": Grouped(sizes, np.ones(3), 11) if n else None,
        "weights": Weighted([weights], n, length, 11) if n else None,
    }


@pytest.mark.parametrize("name", ["full", "window", "none", "class", "weights"])
@pytest.mark.parametrize("n", [0, 1, 101, 1_000_000])
def test_global_batches_are_the_same_however_they_are_computed(n, name):
    """World size 1 to 8 x microbatch x threads x epochs x resume x the rule for the last batch."""
    batch_size, epochs = (840, 3) if n < 1000 else (42_000, 2)
    for last, length in (("wrap", None), ("drop", None), ("wrap", n // 3 + 1))[
        : 3 if n < 1000 else 1
    ]:
        draw = draws(n, length or n)[name]
        order = Order(n, batch_size, 11, last, draw, length)
        per_epoch = order.steps_per_epoch
        assert per_epoch == (order.positions + (batch_size - 1) * (last == "wrap")) // batch_size
        steps = range(per_epoch * epochs)
        whole = order.batches(steps, range(batch_size)) if steps else []
        looked_at = sorted(
            {0, per_epoch // 2, per_epoch - 1, per_epoch, steps.stop - 1} & set(steps)
        )
        for world_size in range(1, 9):
            for microbatch, threads in ((batch_size // 8, 3), (None, 1)):
                plan = plan_batch(batch_size, microbatch, world_size)
                parts = [
                    range(first, first + plan.microbatch)
                    for rank in range(world_size)
                    for first in plan.places(rank)[:: plan.microbatch]
                ]
                resumed = Order(n, batch_size, 11, last, draw, length)  # knows nothing of before
                for step in reversed(looked_at):
                    with ThreadPoolExecutor(threads) as pool:
                        found = list(pool.map(resumed.batch, [step] * len(parts), parts))
                    assert np.array_equal(np.concatenate(found), whole[step])
        once = name in ("full", "window", "none") and length is None
        for epoch in np.split(whole, epochs) if once and steps else []:
            seen = epoch.ravel()[:n]
            assert len(np.unique(seen)) == len(seen) and (last == "drop" or len(seen) == n)
        if steps and n > 1 and name != "none":
            assert not np.array_equal(whole[0], whole[per_epoch])  # epochs differ


def test_an_epoch_of_another_length_goes_on_where_the_one_before_ended():
    order = Order(101, 10, 5, length=40)
    assert order.steps_per_epoch == 4
    seen = order.batches(range(25), range(10)).ravel()  # 250 positions: two turns and a half
    for turn in range(2):
        assert np.array_equal(np.sort(seen[turn * 101 : (turn + 1) * 101]), np.arange(101))


def test_shares_cover_everything_once():
    for n in (0, 1, 5, 101):
        for world_size in range(1, 9):
            shares = [share(n, rank, world_size) for rank in range(world_size)]
            assert [i for part in shares for i in part] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_microbatches_are_whole_norm_groups():
    for world_size in (1, 2, 4):
        for limit in (None, 8, 16, 24, 64):
            plan = plan_batch(64, limit, world_size, norm_batch=8)
            assert plan.microbatch % 8 == 0
            assert plan.microbatch <= (limit or 64)
            assert plan.microbatch * plan.accumulation * world_size == 64


@pytest.mark.parametrize(
    "words, hint",
    [
        ((30, None, 4, 8), "32"),
        ((40, None, 2, 16), "32 or 64"),
        ((32, 4, 1, 8), "model.norm_batch"),
    ],
)
def test_what_does_not_divide_names_the_nearest_that_does(words, hint):
    with pytest.raises(UserError, match=hint):
        plan_batch(*words)


def test_uniform_is_uniform_and_a_function_of_its_words():
    draws = uniform((1, 2), np.arange(5000), 4)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.all(np.abs(draws.mean(axis=0) - 0.5) < 4 * np.sqrt(1 / 12 / 5000))
    assert np.all(np.abs(np.corrcoef(draws.T) - np.eye(4)) < 4 / np.sqrt(5000))
    assert np.array_equal(uniform((1, 2), np.arange(10, 20), 4), draws[10:20])
    assert not np.array_equal(uniform((1, 3), np.arange(10), 4), draws[:10])
