"""What only a GPU shows; without one all of it is skipped.

Each body runs in a child of its own: the parent forks others, and CUDA does not survive that.
"""

import dataclasses
import os
from functools import partial

import numpy as np
import pytest
import torch
from conftest import GPUS
from processes import on_ranks
from runs import configured, records
from test_fused import WORDS, compare
from test_step import batches, make_stepper

from toolkit import loop
from toolkit.precision import compiled, missing_for_compiling
from toolkit.snapshot import Snapshot
from toolkit.speed import peak_flops

pytestmark = pytest.mark.skipif(not GPUS, reason="needs a GPU")


def on_gpu(function):
    """What `function` returns in a child that sees one GPU."""

    def body():
        os.environ["CUDA_VISIBLE_DEVICES"] = GPUS.partition(",")[0]
        return function()

    (found,) = on_ranks(1, body)
    assert not isinstance(found, str), found
    return found


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
    return configured(
        tone_set, tmp_path, model={"dropout": 0.1}, optim={"ema": 0.9}, train=words | train_words
    )


def test_stopped_and_resumed_it_ends_in_the_same_bits_and_says_how_fast_it_was(tone_set, tmp_path):
    found = []
    for n, parts in enumerate([[{}], [{"max_steps": 3}, {}]]):
        for words in parts:
            run = config(tone_set, tmp_path / str(n), **words)
            on_gpu(partial(loop.fit, run))
        found.append((run.folder() / "best.safetensors").read_bytes())
    assert found[0] == found[1]
    last = records(run.folder(), "train")[-1]
    assert last["gpu_memory_gb"] > 0
    known = peak_flops(on_gpu(lambda: [torch.cuda.get_device_name()])[0], "no")
    assert ("mfu" in last) == bool(known)
