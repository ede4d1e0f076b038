"""Trainings in other number formats and memory layouts, and compiled: what must not change."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from processes import on_ranks, train
from runs import configured, records
from safetensors.torch import load_file
from torch import nn

from shards.command import guard
from shards.errors import UserError
from toolkit import loop
from toolkit import losses as losses_module
from toolkit.checkpoint import checkpoints
from toolkit.config import parse
from toolkit.optim import learning_rate
from toolkit.precision import LossScale, arrange, compiled, missing_for_compiling
from toolkit.predictions import LEVELS
from toolkit.schema import TrainConfig
from toolkit.world import World, start

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Reports are not what is tested here, and take longest."""
    score = {level: {"accuracy": 0.0, "macro_f1": 0.0} for level in LEVELS}
    monkeypatch.setattr(loop, "write_fold", lambda *words: words[-1] | score)


def make_config(tone_set, runs, **train):
    """A training on the tones, 2 micro-steps a step, 2 steps an epoch, below `runs`."""
    train = {"epochs": 3, "batch_size": 16, "microbatch": 8, "log_every": 1} | train
    data, optim = {"protocol": "kfold_nested"}, {"lr": 3e-3, "ema": 0.9}
    return configured(tone_set, runs, data=data, optim=optim, train=train)


def lines(config, kind="train"):
    return records(config.folder(), kind)


def losses(config):
    return [line["loss"] for line in lines(config)]


def test_softmax_and_loss_are_float32(tone_set, tmp_path, monkeypatch):
    config, seen = make_config(tone_set, tmp_path, precision="bf16", max_steps=1), []
    original = torch.nn.functional.cross_entropy

    def cross_entropy(logits, y, **words):
        assert not torch.is_autocast_enabled("cpu")
        seen.append(logits.dtype)
        return original(logits, y, **words)

    monkeypatch.setattr(losses_module.F, "cross_entropy", cross_entropy)
    assert on_ranks(1, lambda: (loop.fit(config), seen)[1]) == [[torch.float32] * 2]


def test_bf16_stays_close_to_float32(tone_set, tmp_path):
    configs = [make_config(tone_set, tmp_path / p, precision=p) for p in ("no", "bf16")]
    for config in configs:
        on_ranks(1, lambda config=config: loop.fit(config))
    exact, rounded = map(losses, configs)
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


@pytest.fixture
def fp16(monkeypatch):
    """fp16 on a processor, with a loss scale that is too high at first and soon so again."""
    start = loop.start

    def pretend(precision, *words):
        accelerator, world = start("no", *words)
        return accelerator, dataclasses.replace(world, precision="fp16")

    monkeypatch.setattr(loop, "start", pretend)
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**26, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


def tensors(config, step):
    folder, found = config.folder() / f"checkpoints/step-{step:08d}", {}
    for part in ("model", "ema"):
        found |= {f"{part}.{n}": t for n, t in load_file(folder / f"{part}.safetensors").items()}
    return found


def test_a_step_whose_gradients_overflow_moves_nothing_but_the_scale(tone_set, tmp_path, fp16):
    config = make_config(tone_set, tmp_path, epochs=8, save_every=1, keep_last=99, precision="fp16")
    (result,) = on_ranks(1, lambda: loop.fit(config))
    found = lines(config)
    skipped = [bool(n) for n in np.diff([0, *(line["skipped"] for line in found)])]
    steps, taken = result["steps"], 0
    assert skipped[0] and 3 <= sum(skipped) <= steps - 5, skipped  # at first, and again
    assert not all(skipped[: sum(skipped)])
    per_epoch = steps // 8
    scale, good = 2.0**26, 0
    for n, (line, skip) in enumerate(zip(found, skipped, strict=True), 1):
        assert line["lr"] == learning_rate(config.optim, taken, steps, per_epoch)
        assert (line["grad_norm"] is None) == skip
        assert np.isfinite(line["loss"])
        taken += not skip
        good = 0 if skip else good + 1
        scale *= 0.5 if skip else 2.0 if good == 2 else 1.0
        good %= 2
        assert line["loss_scale"] == scale
        if n > 1:  # weights, the average, and batch norm's running statistics
            before, after = tensors(config, n - 1), tensors(config, n)
            same = {name for name in after if torch.equal(before[name], after[name])}
            assert (same == after.keys()) == skip, n
            assert skip or not {name for name in same if "running" in name}
    state = json.loads(
        (checkpoints(config.folder() / "checkpoints")[-1] / "state.json").read_text()
    )
    state = state["state"]
    assert state["skipped"] == sum(skipped) and state["loss_scale"]["scale"] == scale


def test_stopped_and_resumed_fp16_ends_in_the_same_weights(tone_set, tmp_path, fp16):
    """The scale, its growth and the count of skipped steps come back from the checkpoint."""
    whole, parts = (make_config(tone_set, tmp_path / n, epochs=6) for n in ("whole", "parts"))
    on_ranks(1, lambda: loop.fit(whole))
    for stop in (5, None):
        words = parts.to_dict()
        words["train"]["max_steps"] = stop
        on_ranks(1, lambda words=words: loop.fit(parse(words)))
    names = ("loss", "lr", "loss_scale", "skipped", "grad_norm")
    one, two = ([[line[n] for n in names] for line in lines(c)] for c in (whole, parts))
    assert one == two and one[-1][3] > one[3][3]
    steps = len(one)
    mine, theirs = tensors(parts, steps), tensors(whole, steps)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_gradients_that_overflow_at_any_scale_end_the_training():
    scale = LossScale(World(0, 1, CPU, "fp16"))
    optimizer = torch.optim.SGD([weight := nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(UserError, match="the gradients of the last 50 steps"):
        for _ in range(99):
            weight.grad = scale.scaler.scale(torch.tensor([float("nan")]))
            scale.scaler.unscale_(optimizer)
            assert scale.decide(weight.grad.norm().item())
    assert scale.skipped == 50


@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
def test_nothing_is_compiled_twice(tone_set, tmp_path, monkeypatch, how):
    """Two micro-steps, evaluations of a short part, an average: one graph, and eager's losses."""
    compiler = torch.compile  # only its first half, which decides what has to be compiled
    monkeypatch.setattr(torch, "compile", lambda m, mode, **w: compiler(m, backend="eager", **w))
    monkeypatch.setattr("toolkit.precision.missing_for_compiling", lambda device: None)
    eager, config = (make_config(tone_set, tmp_path / h, compile=h) for h in ("off", how))

    def graphs():
        torch._dynamo.reset()  # what other tests have compiled came with the fork
        torch._dynamo.utils.counters.clear()
        loop.fit(config)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    on_ranks(1, lambda: loop.fit(eager))
    assert on_ranks(1, graphs) == [1]
    np.testing.assert_allclose(losses(config), losses(eager), rtol=1e-5)
    step = len(losses(eager))
    assert tensors(config, step).keys() == tensors(eager, step).keys()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(missing_for_compiling("cpu") is not None, reason="needs a C++ compiler")
def test_compiled_it_trains_as_eager(tone_set, tmp_path):
    configs = [
        make_config(tone_set, tmp_path / h, compile=h, max_steps=3) for h in ("default", "off")
    ]
    file = tmp_path / "compiled.yaml"
    file.write_text(yaml.safe_dump(configs[0].to_dict()))
    done = train(1, str(file))
    assert done.returncode == 0, done.stderr[-2000:]
    on_ranks(1, lambda: loop.fit(configs[1]))
    found, expected = map(losses, configs)
    assert len(expected) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_without_a_compiler_it_is_one_line_and_code_2(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    words = (nn.Linear(1, 1), TrainConfig(compile="default"), World(0, 1, CPU))
    assert guard(lambda: compiled(*words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.compile=default needs a compiler, and there is no /nowhere/c++" in line


def test_kernels_of_a_gpu_are_as_asked():
    def kernels(**words):
        arrange(nn.Linear(1, 1), TrainConfig(**words), World(0, 1, torch.device("cuda")))
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision, cudnn.benchmark

    assert on_ranks(1, kernels) == [("high", "tf32", True)]
    off = {"tf32": False, "cudnn_benchmark": False}
    assert on_ranks(1, lambda: kernels(**off)) == [("highest", "ieee", False)]
    assert on_ranks(1, lambda: kernels(exact=True)) == [("high", "tf32", False)]


def test_what_a_sharded_launch_does_not_take(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model, world = nn.Conv2d(3, 3, 3), World(0, 1, CPU, "bf16")
    assert arrange(model, TrainConfig(), world).weight.is_contiguous()
    with pytest.raises(UserError, match="channels_last=true does not go with FSDP"):
        arrange(model, TrainConfig(channels_last=True), world)
    with pytest.raises(UserError, match="compile=default does not go with FSDP"):
        compiled(model, TrainConfig(compile="default"), world)


def test_a_precision_of_the_launcher_that_is_not_ours(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="the launcher asks for fp8"):
        start("auto", 1)


@pytest.mark.slow
def test_a_checkpoint_does_not_know_the_memory_layout(tone_set, tmp_path):
    """Begun in one and ended in the other, it trains as in one; files hold the plain one."""
    plain, mixed = (make_config(tone_set, tmp_path / n, channels_last=False) for n in ("a", "b"))
    on_ranks(1, lambda: loop.fit(plain))
    words = mixed.to_dict()
    for stop, layout in ((2, False), (4, True), (None, False)):
        words["train"] |= {"max_steps": stop, "channels_last": layout}
        on_ranks(1, lambda: loop.fit(parse(words)))
    np.testing.assert_allclose(losses(mixed), losses(plain), rtol=1e-5)
    step = len(losses(plain))
    mine, theirs = tensors(mixed, step), tensors(plain, step)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5, msg=name)
