<<<<<<< HEAD
"""What only a GPU shows; without one all of it is skipped.

Each body runs in a child of its own: the parent forks others, and CUDA does not survive that.
"""

import dataclasses
import json
import os
from functools import partial
=======
"""What only a GPU runs: batches on a side stream, and a training with the CPU's losses.

Each test is a child process: one in which CUDA has begun cannot fork, as other tests do.
"""

import gc
import json
>>>>>>> s13-order

import numpy as np
import pytest
import torch
<<<<<<< HEAD
from conftest import GPUS
from processes import on_ranks
from test_fused import WORDS, compare
from test_step import batches, make_stepper

from shards.feed import Reading
from shards.index import open_set
from shards.loader import Loader
from shards.order import Order, plan_batch
from toolkit import loop
from toolkit.config import parse
from toolkit.precision import compiled, missing_for_compiling
from toolkit.snapshot import Snapshot
from toolkit.speed import peak_flops

pytestmark = pytest.mark.skipif(not GPUS, reason="needs a GPU")


def on_gpu(function):
    """What `function` returns in a child that sees one GPU."""

    def body():
        os.environ["CUDA_VISIBLE_DEVICES"] = GPUS.partition(",")[0]
        return function()

=======
import yaml
from processes import on_ranks, train

from shards import feed
from shards.feed import Reading, Slot
from shards.index import open_set
from shards.loader import Loader, evaluation_batches
from shards.order import Order, plan_batch

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no GPU here")
CPU, GPU = torch.device("cpu"), "cuda"
WAYS = ["none", "memory", "device", "auto"]


def loader(path, device, **reading):
    shard_set = open_set(path)
    order = Order(len(shard_set), 12, seed=3)
    numbers = np.arange(len(shard_set))
    plan = plan_batch(12, 4, 1)
    return Loader(shard_set, numbers, order, plan, 0, torch.device(device), Reading(**reading))


def in_child(monkeypatch, body):
    """What `body` returns; threads read small samples too."""
    monkeypatch.setattr(feed, "PART", 1)
>>>>>>> s13-order
    (found,) = on_ranks(1, body)
    assert not isinstance(found, str), found
    return found


<<<<<<< HEAD
def train(stepper, steps=6):
    """Losses of some steps, the microbatch in the end, and whether all was on the GPU."""
    device, taken = stepper.world.device, []
    for step in range(steps):
        here = batches(stepper.plan, 0, step)
        here = [b._replace(x=b.x.to(device), y=b.y.to(device)) for b in here]
        taken.append(stepper(here, step, 0.01).loss)
    return taken, stepper.microbatch, device.type


def on_cpu(microbatch=None):
    ((losses, _, _),) = on_ranks(1, lambda: train(make_stepper(microbatch)))
    return losses


@pytest.mark.parametrize("words", WORDS)
def test_the_fused_step_is_that_of_torch(words):
    on_gpu(partial(compare, words, "cuda"))


def test_it_trains_as_a_processor_does():
    losses, _, device = on_gpu(lambda: train(make_stepper(8)))
    assert device == "cuda"
    np.testing.assert_allclose(losses, on_cpu(8), rtol=0.02)  # convolutions in TF32


def test_where_memory_ends_the_microbatch_is_halved():
    def starved():
        torch.cuda.set_per_process_memory_fraction(0.1)
        sample = torch.cuda.get_device_properties(0).total_memory // 120
        stepper = make_stepper()
        model = stepper.model

        def greedy(x):
            torch.empty(len(x) * sample, dtype=torch.uint8, device=x.device)
            return model(x)

        stepper.model = greedy
        return train(stepper)

    losses, microbatch, _ = on_gpu(starved)
    assert microbatch == 8
    np.testing.assert_allclose(losses, on_cpu(), rtol=0.02)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits_stay_close_to_float32(precision):
    def run():
        stepper = make_stepper(8, precision=precision)
        return (*train(stepper), stepper.scale.figures())

    losses, _, _, figures = on_gpu(run)
    np.testing.assert_allclose(losses, on_cpu(8), rtol=0.1)
    assert figures.get("loss_scale", 1.0) >= 1.0 and figures.get("skipped", 0) <= 2


@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
@pytest.mark.timeout(300)
def test_compiled_it_trains_as_eager(how):
    if missing_for_compiling("cuda"):
        pytest.skip("needs a compiler")

    def run():
        stepper = make_stepper(8)  # two micro-steps: a graph's gradients are copied between them
        asked = dataclasses.replace(stepper.config.train, compile=how)
        stepper.config = dataclasses.replace(stepper.config, train=asked)
        stepper.model = compiled(stepper.strategy.model, asked, stepper.world)
        return train(stepper)

    np.testing.assert_allclose(on_gpu(run)[0], on_cpu(8), rtol=0.02)


@pytest.mark.parametrize("where", ["none", "memory", "device"])
def test_batches_that_cross_on_a_stream_are_those_of_the_host(tone_set, where):
    def run():
        shard_set = open_set(tone_set)
        order, plan = Order(len(shard_set), 6, seed=0), plan_batch(6, 3, 1)
        loaders = [
            Loader(shard_set, np.arange(order.n), order, plan, 0, torch.device(device), Reading())
            for device in ("cpu", "cuda")
        ]
        loaders[1].reading = Reading(resident=where)
        steps = (loader.steps(1, 4 * order.steps_per_epoch) for loader in loaders)
        for step in zip(*steps, strict=True):
            for a, b in zip(*step, strict=True):
                assert b.x.is_cuda and torch.equal(a.x, b.x.cpu()) and torch.equal(a.y, b.y.cpu())

    on_gpu(run)


def test_a_snapshot_is_of_what_was_when_it_was_asked_for():
    def run():
        t = torch.zeros(1 << 24, device="cuda")
        for n in range(20):
            snapshot = Snapshot({"model": {"t": t}}, {})
            snapshot.hold()
            t += 1
            assert (snapshot.take()["model"]["t"] == n).all()

    on_gpu(run)


def config(tone_set, tmp_path, **train_words):
    words = {"epochs": 4, "batch_size": 12, "microbatch": 12, "log_every": 1, "exact": True}
    return parse({
        "run": {"name": "gpu", "dir": str(tmp_path)},
        "data": {"shards": str(tone_set), "protocol": "kfold", "fold": 0},
        "model": {"name": "cnn_tiny", "norm_batch": 4, "dropout": 0.1},
        "optim": {"ema": 0.9},
        "train": words | train_words,
    })  # fmt: skip


def test_stopped_and_resumed_it_ends_in_the_same_bits_and_says_how_fast_it_was(tone_set, tmp_path):
    found = []
    for n, parts in enumerate([[{}], [{"max_steps": 3}, {}]]):
        for words in parts:
            run = config(tone_set, tmp_path / str(n), **words)
            on_gpu(partial(loop.fit, run))
        found.append((run.folder() / "best.safetensors").read_bytes())
    assert found[0] == found[1]
    lines = map(json.loads, (run.folder() / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["gpu_memory_gb"] > 0
    known = peak_flops(on_gpu(lambda: [torch.cuda.get_device_name()])[0], "no")
    assert ("mfu" in last) == bool(known)
=======
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("where", WAYS)
def test_batches_on_the_device_are_those_on_the_cpu(tone_set, monkeypatch, where, threads):
    """Also while the device is far behind: what was handed out is not overwritten before it ran."""

    def body():
        device = loader(tone_set, GPU, resident=where, threads=threads)
        stop, sums, wanted = 4 * device.order.steps_per_epoch, [], []
        for batches in device.steps(1, stop):
            torch.cuda._sleep(20_000_000)  # clock cycles: some 10 ms
            for batch in batches:
                assert batch.x.device.type == batch.y.device.type == "cuda"
                weights = torch.arange(batch.x[0].numel(), device=GPU).reshape(batch.x[0].shape)
                sums.append(((batch.x.double() * weights).sum((1, 2)), batch.y.clone()))
        for batches in loader(tone_set, CPU).steps(1, stop):
            for batch in batches:
                weights = torch.arange(batch.x[0].numel()).reshape(batch.x[0].shape)
                wanted.append(((batch.x.double() * weights).sum((1, 2)), batch.y.clone()))
        for found, expected in zip(sums, wanted, strict=True):
            torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-12, atol=1e-6)
            assert torch.equal(found[1].cpu(), expected[1])
        return len(sums)

    assert in_child(monkeypatch, body) > 20


@pytest.mark.parametrize("where", ["none", "memory", "device"])
def test_the_loop_waits_for_no_copy(tone_set, monkeypatch, where):
    """After the epoch that fills a resident set, CUDA raises at whatever makes the host wait."""

    def body():
        device, steps = loader(tone_set, GPU, resident=where), 0
        epoch = device.order.steps_per_epoch
        for step, batches in enumerate(device.steps(0, 4 * epoch)):
            if step == 2 * epoch:
                torch.cuda.set_sync_debug_mode("error")
            steps += len(batches)
        return steps

    assert in_child(monkeypatch, body) == 3 * 4 * -(-len(open_set(tone_set)) // 12)


def test_buffers_are_pinned_and_are_given_back(tone_set, monkeypatch):
    def body():
        slot = Slot(4, (8, 10), pin=True)
        pinned = (slot.x, slot.y, torch.from_numpy(slot.places))
        assert all(tensor.is_pinned() for tensor in pinned)
        del slot, pinned
        device = loader(tone_set, GPU)
        for n in range(100):
            steps = device.steps(n, 10**6)
            for _, _ in zip(range(n % 3 + 1), steps, strict=False):
                pass
            steps.close()
            if n == 10:
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        gc.collect()
        torch.cuda.synchronize()
        assert not [x for x in gc.get_objects() if type(x) is Slot], "a buffer is still held"
        return before == (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())

    assert in_child(monkeypatch, body) is True


def test_an_evaluation_on_the_device_sees_what_it_sees_on_the_cpu(tone_set, monkeypatch):
    def body():
        shard_set = open_set(tone_set)
        numbers = np.arange(1, len(shard_set), 2)
        found = [
            [(b.x.cpu().clone(), b.y.cpu().clone(), b.places) for b in evaluation_batches(
                shard_set, numbers, 5, 0, 1, torch.device(device))]
            for device in (CPU, GPU)
        ]  # fmt: skip
        for one, other in zip(*found, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            assert np.array_equal(one[2], other[2])
        return len(found[0])

    assert in_child(monkeypatch, body) > 3


@pytest.mark.parametrize("where", WAYS)
def test_a_training_has_the_losses_of_the_cpu(tone_set, tmp_path, monkeypatch, where):
    """In float32, without TF32: rounding is all that differs."""
    config = {
        "run": {"name": "gpu", "dir": str(tmp_path)},
        "data": {"shards": str(tone_set), "protocol": "kfold", "resident": where},
        "model": {"name": "cnn_tiny", "norm_batch": 4},
        "train": {
            "max_steps": 12, "batch_size": 8, "microbatch": 4, "log_every": 1, "threads": 1,
            "precision": "no", "tf32": False,
        },
    }  # fmt: skip
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(config))

    def losses(name):
        run = train(1, str(tmp_path / "gpu.yaml"), f"--run.name={name}")
        assert run.returncode == 0, run.stderr
        lines = (tmp_path / name / "fold-0" / "metrics.jsonl").read_text().splitlines()
        rows = map(json.loads, lines)
        return [row["loss"] for row in rows if row["kind"] == "train"]

    on_gpu = losses("gpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert len(on_gpu) == 12
    np.testing.assert_allclose(on_gpu, losses("cpu"), rtol=1e-3)
>>>>>>> s13-order
