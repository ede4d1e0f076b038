"""Order as arithmetic, swept over sizes, ranks, microbatches and resumes."""

import numpy as np
import pytest

from shards.errors import UserError
from shards.order import Order, plan_batch, share
from shards.randomness import key, permute, uniform

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


def test_permute_shuffles_as_well_as_numpy():
    n = 20_000
    images = permute(np.arange(n), n, key(3, 5))
    bound = 4 / np.sqrt(n)  # four standard deviations of the correlation of independent sequences
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < bound
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < bound
    neighbours = np.mean(np.abs(np.diff(images)) == 1)
    assert neighbours < 6 / n + 4 * np.sqrt(2 / n) / np.sqrt(n)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("last", ["wrap", "drop"])
def test_global_batches_are_the_same_on_any_number_of_ranks(n, last):
    batch_size, epochs = 24, 2
    order = Order(n, batch_size, seed=11, last=last)
    steps = order.steps_per_epoch * epochs
    whole = [order.batch(step, range(batch_size)) for step in range(steps)]
    for world_size in (1, 2, 3, 4, 6, 8):
        for microbatch in (1, 2, 3, None):
            plan = plan_batch(batch_size, microbatch, world_size)
            for step in range(steps):
                parts = []
                for rank in range(world_size):
                    places = plan.places(rank)
                    assert len(places) == plan.accumulation * plan.microbatch
                    parts.append(order.batch(step, places))
                assert np.array_equal(np.concatenate(parts), whole[step])
    for epoch in range(epochs):
        mine = whole[epoch * order.steps_per_epoch : (epoch + 1) * order.steps_per_epoch]
        seen = np.concatenate(mine)[:n] if mine else np.zeros(0, int)
        assert len(np.unique(seen)) == len(seen)  # none twice before the wrap
        if last == "wrap":
            assert len(seen) == n  # and each once
    if steps > 2 and n > 7:
        assert not np.array_equal(whole[0], whole[order.steps_per_epoch])  # epochs differ


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
