"""Selections against plain numpy; subsets; and what 10^7 and 10^8 samples cost in memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT, environment

from shards.errors import UserError
from shards.index import open_set
from shards.selection import deal
from toolkit.protocol import part_masks, select, subset

MAKE = {
    "scattered": lambda n, chance: chance.integers(-1, 5, n),
    "in runs": lambda n, chance: np.repeat(chance.integers(-1, 5, n // 1000 + 1), 1000)[:n],
    "all": lambda n, chance: np.full(n, 4),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("n", [0, 1, 100, 65_536, 65_537, 300_001])
def test_a_selection_is_what_flatnonzero_finds(n, kind):
    group = MAKE[kind](n, np.random.default_rng(n))
    parts = deal(n, lambda first, stop: group[first:stop], [2, 2, 1])
    for part, mine in zip(parts, ([0, 1], [2, 3], [4]), strict=True):
        expected = np.concatenate([np.flatnonzero(group == g) for g in mine])
        assert len(part) == len(expected) and np.array_equal(part[:], expected)
        assert part.sizes.tolist() == [np.count_nonzero(group == g) for g in mine]
        some = np.random.default_rng(1).permutation(len(part))[:1000]
        assert np.array_equal(part[some], expected[some])
        assert np.array_equal(np.concatenate([[0], *part.pieces(777)]), [0, *expected])
    asked = [0, 1, 5, 65_535, 65_536, 65_537, n // 2, 131_072, 200_000, n, 10**6]
    assert np.array_equal(parts[2].ranks(asked), np.searchsorted(parts[2][:], asked))
    assert kind != "all" or len(parts[0].low) == 65_536  # what has no gaps keeps nothing


def test_there_may_be_very_many_groups():
    """As classes of speakers of several sets are."""
    n, count = 100_000, 70_000
    group = np.random.default_rng(0).integers(-1, count + 2, n)
    train, val, test = deal(n, lambda first, stop: group[first:stop], [count, 1, 1])
    assert np.array_equal(val[:], np.flatnonzero(group == count))
    assert np.array_equal(test[:], np.flatnonzero(group == count + 1))
    order = np.argsort(group, kind="stable")
    assert np.array_equal(train[:], order[(group[order] >= 0) & (group[order] < count)])
    assert np.array_equal(train.sizes, np.bincount(group[group >= 0], minlength=count)[:count])


def recordings_of(shard_set, numbers):
    return set(shard_set.rows(numbers)["recording"].tolist())


def test_a_fraction_is_nested_stratified_and_of_whole_groups(tone_set):
    shard_set = open_set(tone_set)
    known = list(shard_set.recordings())
    masks = part_masks(shard_set, "kfold", 1)
    whole = select(shard_set, masks)
    before: set[int] = set()
    for fraction in (0.1, 0.2, 0.5, 0.75, 1.0):
        parts = select(shard_set, masks, fraction=fraction, seed=3)
        kept = recordings_of(shard_set, parts["train"][:])
        assert kept >= before
        assert np.array_equal(parts["test"][:], whole["test"][:])  # others stay whole
        every = recordings_of(shard_set, whole["train"][:])
        for label in shard_set.info["classes"]:
            groups = {known[i]["group"] for i in every if known[i]["label"] == label}
            mine = {known[i]["group"] for i in kept if known[i]["label"] == label}
            assert len(mine) == np.ceil(fraction * len(groups))
            assert kept >= {i for i in every if known[i]["group"] in mine}
        segments = np.isin(shard_set.rows(whole["train"][:])["recording"], list(kept))
        assert len(parts["train"]) == np.count_nonzero(segments)  # recordings are taken whole
        before = kept
    assert np.array_equal(parts["train"][:], whole["train"][:])
    other = select(shard_set, masks, fraction=0.5, seed=4)["train"][:]
    assert not np.array_equal(other, select(shard_set, masks, fraction=0.5, seed=3)["train"][:])
    with pytest.raises(UserError, match=r"data\.fraction=0: above 0"):
        subset(shard_set, masks["train"], 0.0, 0)


BIG = """
import json, sys, threading, time
from functools import cached_property
from pathlib import Path
import numpy as np
import torch
from shards.feed import Reading
from shards.index import ROW, ShardSet
from shards.loader import Loader, _store_of
from shards.order import plan_batch
from toolkit.schema import DataConfig
from toolkit.data import make_groups, make_order
from toolkit.protocol import part_masks, select

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024

def watch():
    while True:
        most[0] = max(most[0], anonymous())
        time.sleep(0.005)

class Patterned(ShardSet):
    # A file of holes reads as zeros; folds and labels are made up as they are read.
    def shard_place(self, shard):
        return str(self.shard_file(shard))

    def shard_file(self, shard):
        return self.path / "samples.tar"

    def rows(self, numbers):
        rows = self.index[numbers].copy()
        if isinstance(numbers, slice):
            numbers = np.arange(numbers.start, numbers.start + len(rows))
        mixed = numbers * 2654435761 >> 16
        rows["fold"], rows["label"] = mixed % 5, mixed % 997 == 0
        return rows

folder, n, words = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
header = np.lib.format.open_memmap(folder / "index.npy", mode="w+", dtype=ROW, shape=(n,))
del header
with open(folder / "samples.tar", "wb") as tar:
    tar.truncate(64000)
shards = [{"name": f"samples-{i:06d}.tar", "samples": 1000} for i in range(n // 1000)]
info = {"shape": [128, 250], "classes": ["a", "b"], "folds": list("12345"), "shards": shards}
shard_set = Patterned(folder, info)
start, most = anonymous(), [0.0]
threading.Thread(target=watch, daemon=True).start()
data = DataConfig(shards="", protocol="kfold_nested", **words)
masks = part_masks(shard_set, data.protocol, 0)
parts = select(shard_set, masks, make_groups(shard_set, data))
order = make_order(shard_set, parts["train"], data, 256, 1)
seen = 0
for step in (*range(200), 10**6, 10**9):
    numbers = parts["train"][order.batch(step, range(256))]
    rows = shard_set.rows(numbers)
    assert masks["train"][rows["split"], rows["fold"]].all()
    seen += rows["label"].sum()
assert sum(map(len, parts.values())) == n
reading = Reading(check=False, resident="auto")
plan = plan_batch(256, None, 1)
loader = Loader(shard_set, parts["train"], order, plan, 0, torch.device("cpu"), reading)
for step in (0, 10**6):
    for (batch,) in loader.steps(step, step + 20):
        assert np.array_equal(batch.numbers, parts["train"][order.batch(step, range(256))])
        step += 1
test = parts["test"]
for _ in range(2):  # an evaluation, and another one, of what does not fit into memory
    where = range(len(test)), torch.device("cpu"), Reading(resident="auto")
    assert _store_of(shard_set, test, *where).where == "none"
print(json.dumps({"MB": max(most[0], anonymous()) - start, "share": seen / 202 / 256}))
"""


@pytest.mark.parametrize(
    "n, most, words",
    [
        (10**7, 100, {"balance": "class"}),
        (10**7, 100, {"shuffle": "window"}),
        pytest.param(10**8, 300, {"balance": "class"}, marks=pytest.mark.slow),
    ],
)
def test_memory_of_very_many_samples(tmp_path, n, most, words):
    command = [sys.executable, "-c", BIG, str(tmp_path), str(n), json.dumps(words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["MB"] <= most
    share = 0.5 if words.get("balance") else 1 / 997
    assert abs(found["share"] - share) < 5 * np.sqrt(share / 202 / 256)
