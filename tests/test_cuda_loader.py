"""Batches on a GPU's side stream, and a training with the losses of the CPU; see test_cuda."""

import gc

import numpy as np
import pytest
import torch
from conftest import GPUS
from processes import train
from runs import config_file, records
from test_cuda import on_gpu

from shards import feed
from shards.feed import Reading, Slot
from shards.index import open_set
from shards.loader import Loader, evaluation_batches
from shards.order import Order, plan_batch

pytestmark = pytest.mark.skipif(not GPUS, reason="needs a GPU")
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
    return on_gpu(body)


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
    words = {"max_steps": 12, "microbatch": 4, "log_every": 1, "precision": "no", "tf32": False}
    config = config_file(tmp_path, tone_set, "", data={"resident": where}, train=words)

    def losses(name):
        run = train(1, config, f"--run.name={name}")
        assert run.returncode == 0, run.stderr
        return [row["loss"] for row in records(tmp_path / name / "fold-0", "train")]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS.partition(",")[0])
    on_the_gpu = losses("gpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert len(on_the_gpu) == 12
    np.testing.assert_allclose(on_the_gpu, losses("cpu"), rtol=1e-3)
