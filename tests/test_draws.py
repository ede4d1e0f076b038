"""What draws promise: how random, how even, how local; the same on any number of processes."""

import hashlib

import numpy as np
import pytest
import torch
from processes import on_ranks

from shards.draws import Full, Grouped, Weighted, Window
from shards.index import open_set
from shards.loader import Loader
from shards.order import Order, plan_batch
from shards.randomness import uniform
from toolkit.data import make_groups, make_order
from toolkit.protocol import part_masks, select
from toolkit.schema import DataConfig
from toolkit.world import start

SHARDS, A_SHARD, WIDTH = 64, 300, 8
N = SHARDS * A_SHARD
BOUNDS = np.arange(0, N + 1, A_SHARD)
SHUFFLES = {"full": Full(N, 3), "window": Window(BOUNDS, WIDTH, 3)}


def epoch(draw, number):
    return draw(np.arange(number * N, (number + 1) * N))


def pairs(sequence):
    """Each two neighbours of a sequence, whichever comes first, as one number."""
    low, high = np.sort([sequence[:-1], sequence[1:]], axis=0)
    return low * N + high


@pytest.mark.parametrize("name", SHUFFLES)
def test_a_shuffle_is_as_random_as_its_kind_can_be(name):
    """Bounds are five standard deviations of what independent permutations give."""
    first, second = (epoch(SHUFFLES[name], number) for number in (0, 1))
    assert np.array_equal(np.sort(first), np.arange(N))
    # Units that move as one: samples, or shards.
    free = N if name == "full" else SHARDS
    assert abs(np.corrcoef(np.arange(N), first)[0, 1]) < 5 / np.sqrt(free)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(free)
    within = WIDTH * A_SHARD  # of them, any two are neighbours with probability 2 / within
    together = 1 / WIDTH + (1 - 1 / WIDTH) * (WIDTH - 1) / (SHARDS - 1)
    repeats = 2.0 if name == "full" else N * together * 2 / within
    found = len(np.intersect1d(pairs(first), pairs(second)))
    assert found < repeats + 5 * np.sqrt(repeats)
    if name == "full":  # ten classes stored one after the other: runs of a class are geometric
        changes = np.count_nonzero(np.diff(first * 10 // N))
        assert abs(changes - 0.9 * (N - 1)) < 5 * np.sqrt(0.09 * N)


def test_a_window_reads_few_shards_at_a_time_and_each_to_its_end():
    bounds = np.cumsum([0, 40, 0, 7, 300, 1, 90, 33, 60, 0, 25])  # shards of any size, some empty
    n, draw = int(bounds[-1]), Window(bounds, 3, 5)
    seen = []
    for turn in range(3):
        order = draw(np.arange(turn * n, (turn + 1) * n))
        assert np.array_equal(np.sort(order), np.arange(n))
        shard = np.searchsorted(bounds, order, "right") - 1
        begin = {s: np.flatnonzero(shard == s)[0] for s in set(shard.tolist())}
        end = {s: np.flatnonzero(shard == s)[-1] for s in begin}
        for place in range(n):
            assert sum(begin[s] <= place <= end[s] for s in begin) <= 3
        seen.append(sorted(begin, key=begin.__getitem__))
    assert seen[0] != seen[1] != seen[2]  # shards come in another order each time


@pytest.mark.parametrize("sizes", [[100_000, 100], [60_000, 3, 60, 5000, 1, 77, 1234, 9]])
def test_classes_keep_their_share_in_every_thousand_batches_on_1_and_3_ranks(sizes):
    batch_size, n = 48, sum(sizes)
    order = Order(n, batch_size, 7, draw=Grouped(sizes, np.ones(len(sizes)), 7))
    steps = range(200, 4200)
    whole = order.batches(steps, range(batch_size))
    plan = plan_batch(batch_size, None, 3)
    for step in (200, 1234, 4199):
        ranks = [order.batch(step, plan.places(rank)) for rank in range(3)]
        assert np.array_equal(np.concatenate(ranks), whole[step - 200])
    classes = np.searchsorted(np.cumsum(sizes), whole, "right")
    share = 1000 * batch_size / len(sizes)
    for number in range(len(sizes)):
        counts = np.cumsum(np.append(0, np.count_nonzero(classes == number, axis=1)))
        found = counts[1000:] - counts[:-1000]  # every thousand batches, wherever they begin
        assert np.abs(found - share).max() <= 0.01 * share


def test_each_member_of_a_class_comes_once_before_any_comes_again():
    draw = Grouped([1000, 10, 3], [0.5, 0.3, 0.2], 1)
    found = draw(np.arange(5000))
    for begin, size in ((0, 1000), (1000, 10), (1010, 3)):
        members = found[(found >= begin) & (found < begin + size)]
        for first in range(0, len(members) - size, size):
            assert np.array_equal(np.sort(members[first : first + size]), begin + np.arange(size))
    share = np.bincount(np.searchsorted([1000, 1010], found, "right")) / 5000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.2], atol=2 / 5000)
    batches = found[:4800].reshape(-1, 8) < 1000
    assert len({tuple(row) for row in batches.tolist()}) > 50  # no fixed pattern inside a batch


def test_a_sample_comes_by_its_weight_in_every_epoch():
    n, length = 5000, 12_345
    weights = uniform((5,), np.arange(n), 1)[:, 0] ** 4
    weights[::7] = 0
    draw = Weighted(np.array_split(weights, 3), n, length, 2)
    wanted = length * weights / weights.sum()
    total = np.zeros(n)
    for number in range(20):
        found = draw(np.arange(number * length, (number + 1) * length))
        counts = np.bincount(found, minlength=n)
        assert np.abs(counts - wanted).max() < 1 + 1e-2  # floor or ceil, float32 aside
        total += counts
    assert not total[::7].any()
    assert np.abs(total / 20 - wanted).max() < 0.2
    assert abs(np.corrcoef(np.arange(length), found)[0, 1]) < 5 / np.sqrt(length)


@pytest.mark.parametrize(
    "data", [{}, {"shuffle": "window", "window": 2}, {"balance": "class", "samples_per_epoch": 90}]
)
def test_real_processes_draw_the_same_sequence_of_samples(tone_set, data):
    shard_set, config = open_set(tone_set), DataConfig(shards="", protocol="kfold", **data)
    groups = make_groups(shard_set, config)
    train = select(shard_set, part_masks(shard_set, "kfold", 0), groups)["train"]

    def sequence():
        accelerator, world = start("no", 1)
        order, plan = make_order(shard_set, train, config, 24, 5), plan_batch(24, 4, world.size)
        loader = Loader(shard_set, train, order, plan, world.rank, world.device)
        numbers = [np.concatenate([b.numbers for b in step]) for step in loader.steps(3, 9)]
        mine = torch.from_numpy(np.stack(numbers))[None].contiguous()
        both = torch.cat(list(accelerator.gather(mine)), dim=1).numpy()
        assert both.shape == (6, 24)
        return hashlib.sha256(both.tobytes()).hexdigest()

    expected = on_ranks(1, sequence)
    assert len(expected[0]) == 64
    for world_size in (2, 3):
        assert on_ranks(world_size, sequence) == expected * world_size
