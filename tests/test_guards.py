"""Losses that are not finite, one batch learnt by heart, profiles, and a training for debuggers."""

import dataclasses
import gzip
import io
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from processes import on_ranks
from runs import configured, records
from test_step import batches, make_stepper, train

from shards.command import guard
from shards.errors import TrainingError, UserError
from shards.index import open_set
from toolkit.data import open_parts
from toolkit.debug import at_the_desk
from toolkit.guards import suspects
from toolkit.hub import HubConfig
from toolkit.loop import fit
from toolkit.models import build
from toolkit.overfit import GOAL, STEPS, floor, overfit_batch, plainest
from toolkit.schema import ModelConfig
from toolkit.speed import flops_a_sample, peak_flops, profiled, progress_bar
from toolkit.world import World

pytestmark = pytest.mark.usefixtures("no_pictures")


def make_config(path, tmp_path, **train):
    """Nine steps an epoch on the tones."""
    train = {"batch_size": 4, "epochs": 1, "log_every": 1} | train
    return configured(
        path, tmp_path / "runs", data={"check": False, "resident": "none"},
        model={"norm_batch": 2}, optim={"ema": 0.9}, train=train,
    )  # fmt: skip


@pytest.fixture
def poisoned(tone_set, tmp_path):
    """The tones with one cell of one sample that is NaN, and the sample's number."""
    path = shutil.copytree(tone_set, tmp_path / "set")
    shard_set, number = open_set(path), 20
    row = shard_set.index[number]
    with open(shard_set.shard_file(row["shard"]), "r+b") as tar:
        tar.seek(int(row["offset"]) + 100)
        tar.write(np.float16("nan").tobytes())
    return path, number


def lines(config, kind):
    return records(config.folder(), kind)


def test_a_sample_that_is_not_finite_is_named_and_ends_both_ranks(poisoned, tmp_path, capsys):
    path, number = poisoned
    config = make_config(path, tmp_path)

    def run():
        with pytest.raises(TrainingError) as caught:
            fit(config)
        return str(caught.value)

    first, second = on_ranks(2, run)
    assert first == second and "\n" not in first
    data, places = open_parts(config), range(4)
    orders = [data.parts["train"][data.order.batch(step, places)] for step in range(9)]
    step = next(i for i, some in enumerate(orders) if number in some)
    row = data.shard_set.index[number]
    recording = list(data.shard_set.recordings())[row["recording"]]["path"]
    rank = orders[step].tolist().index(number) // 2
    assert first.startswith(f"step {step + 1}: the loss is nan")
    assert (
        f"stored spectrogram of samples {number}, recordings {recording}, on rank {rank}" in first
    )
    (event,) = lines(config, "nonfinite")
    assert (event["step"], event["numbers"], event["ranks"]) == (step + 1, [number], [rank])
    assert len(lines(config, "train")) == step

    def stop():
        raise TrainingError(first)

    assert guard(stop) == 1
    assert capsys.readouterr().err == f"error: {first}\n"


def test_a_few_such_steps_are_skipped_and_training_goes_on(poisoned, tmp_path):
    path, number = poisoned
    config = make_config(path, tmp_path, nonfinite_patience=1)
    (result,) = on_ranks(1, lambda: fit(config))
    assert result["steps"] == 10
    (event,) = lines(config, "nonfinite")
    steps = {x["step"] for x in lines(config, "train")}
    assert event["numbers"] == [number] and steps == set(range(1, 11)) - {event["step"]}
    (epoch,) = lines(config, "epoch")
    mean = np.mean([x["loss"] for x in lines(config, "train")])
    assert epoch["train_loss"] == pytest.approx(mean)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_skipped_step_has_moved_nothing(world_size):
    """Weights, their average, Adam's moments and batch norm: as if the step had not been."""

    def run(spoil):
        stepper = make_stepper(4)
        train(stepper, 2)
        if spoil:
            some = batches(stepper.plan, stepper.world.rank, 1)
            taken = spoil(stepper, some, stepper.world.rank + 1 == world_size)
            assert not taken.finite and math.isfinite(taken.loss) == (spoil is blow_up)
        return train(stepper, 4)

    def poison(stepper, some, mine):
        some[0].x[1, 0, 0] = math.nan if mine else 0.0
        return stepper(some, 1, 0.01)

    def blow_up(stepper, some, mine):
        weight = stepper.strategy.module.head[-1].weight
        hook = weight.register_hook(lambda gradient: gradient * (math.inf if mine else 1.0))
        taken = stepper(some, 1, 0.01)
        hook.remove()
        return taken

    for clean, *others in on_ranks(world_size, lambda: [run(s) for s in (None, poison, blow_up)]):
        for found in others:
            assert found[:2] == clean[:2]
            assert np.array_equal(found[2], clean[2])


def test_a_gradient_that_is_not_finite_names_its_microbatch():
    def run():
        stepper = make_stepper(4)
        some = batches(stepper.plan, 0, 0)
        some[2].x[1, 0, 0] = 60000.0

        def blow_up(module, words, logits):
            if (words[0] == 60000.0).any() and logits.requires_grad:
                logits.register_hook(lambda gradient: gradient * math.nan)

        stepper.strategy.module.register_forward_hook(blow_up)
        return suspects(stepper, some, 0)

    assert on_ranks(1, run) == [(3, [8, 9, 10, 11])]


def test_a_model_learns_one_batch_by_heart_and_leaves_no_run(tone_set, tmp_path):
    config = make_config(tone_set, tmp_path)
    quick = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.01))
    (steps,) = on_ranks(1, lambda: overfit_batch(quick))
    assert 5 < steps < STEPS
    kinds = ("dropout", "embed_dropout", "patch_dropout", "drop_path")
    shaken = dataclasses.replace(config.model, **dict.fromkeys(kinds, 0.5))
    assert plainest(dataclasses.replace(config, model=shaken)).model == config.model
    assert not (tmp_path / "runs").exists()


def test_what_is_not_learnt_by_heart_says_why(tone_set, tmp_path):
    def said(lr, steps):
        config = make_config(tone_set, tmp_path, max_steps=steps)
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr))
        with pytest.raises(TrainingError, match=f"after [0-9]+ steps, {GOAL} is asked") as caught:
            overfit_batch(config)
        return str(caught.value)

    cases = {(3e-3, 20): "still falls", (0.0, 50): "is stuck", (1e30, 30): "lower optim.lr=1e+30"}
    cases |= {(1e-9, 2): "2 steps, the first 10 of them warm-up, tell nothing"}
    (found,) = on_ranks(1, lambda: [said(*case) for case in cases])
    for words, line in zip(cases.values(), found, strict=True):
        assert words in line and "\n" not in line


def test_labels_that_contradict_each_other_have_a_floor():
    x = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(np.float16)
    numbers, y = np.arange(10, 16), np.array([0, 1, 2, 0, 1, 2])
    assert floor(x, y, numbers) == (0.0, [])
    x[[1, 2]] = x[0]  # one spectrogram, three labels
    lowest, twins = floor(x, y, numbers)
    assert lowest == pytest.approx(3 * math.log(3) / 6)
    assert twins == [(10, 0), (11, 1)]


def test_flops_are_those_of_arithmetic():
    """Forward, and twice as much backward, but for the first layer, whose input needs none."""
    config = ModelConfig(name="cnn_tiny", norm_batch=4)
    model, products = build(config, 3, (32, 40)), []

    def count(module, words, out):
        products.append(out.numel() * module.weight[0].numel())

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, 1, 32, 40))
    assert flops_a_sample(config, 3, (32, 40)) == 2 * (3 * sum(products) - products[0])


@pytest.mark.parametrize(
    "name, precision, peak",
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "no", 378e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA GeForce RTX 4090", "fp16", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp16", None),
        ("NVIDIA RTX A4000", "bf16", None),
        ("Tesla T4", "no", 8.1e12),
    ],
)
def test_peaks_are_found_by_the_name_that_cuda_gives(name, precision, peak):
    assert peak_flops(name, precision) == peak


def test_a_dry_run_evaluates_saves_reports_and_profiles(tone_set, tmp_path):
    config = make_config(tone_set, tmp_path, max_steps=2, profile=True)
    (result,) = on_ranks(1, lambda: fit(config))
    assert result["steps"] == 2
    names = {path.name for path in config.folder().iterdir()}
    assert names >= {
        "checkpoints", "best.safetensors", "model.json", "metrics.jsonl", "predictions.csv",
        "scores.json", "report.txt", "report.html", "trace.json.gz", "profile.txt",
    }  # fmt: skip
    with gzip.open(config.folder() / "trace.json.gz") as trace:
        events = json.load(trace)["traceEvents"]
    convolutions = [x for x in events if x.get("name") == "aten::convolution_backward"]
    assert len(convolutions) == 2 * 3  # steps, layers
    assert "aten::convolution_backward" in (config.folder() / "profile.txt").read_text()


def test_what_is_profiled_comes_after_a_warm_up(tmp_path):
    steps = []
    for step in profiled(range(12), 12, tmp_path):
        steps.append(step)
        torch.zeros(step + 1).cos()
    assert steps == list(range(12))
    with gzip.open(tmp_path / "trace.json.gz") as trace:
        names = [x.get("name") for x in json.load(trace)["traceEvents"]]
    assert names.count("aten::cos") == 3


def test_the_bar_tells_rate_and_time_left_on_the_terminal_of_rank_0_alone(monkeypatch):
    def shown(rank, on_a_terminal):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        monkeypatch.setattr(sys.stderr, "isatty", lambda: on_a_terminal)
        with progress_bar(World(rank, 2, torch.device("cpu")), 32, 5, 10) as bar:
            bar.update(32)
            bar.refresh()
            return sys.stderr.getvalue()

    assert re.search(r"192/320 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ samples/s\]", shown(0, True))
    assert shown(1, True) == shown(0, False) == ""


def test_debug_is_a_short_run_of_its_own(tone_set, tmp_path, monkeypatch):
    config = make_config(tone_set, tmp_path, epochs=30, timeout=5.0)
    config = dataclasses.replace(config, hub=HubConfig(repo="owner/name"))

    def run():
        debugged = at_the_desk(config)
        assert torch.is_anomaly_enabled() and debugged.train.timeout == 0
        assert debugged.hub.repo is None
        return [fit(debugged)["steps"] for _ in range(2)]  # the second one starts over

    assert on_ranks(1, run) == [[4, 4]]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tones-debug"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        at_the_desk(config)
