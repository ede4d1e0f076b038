"""Optimisers, schedules, averaged weights and early stopping, against torch and arithmetic."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from processes import on_ranks
from torch import nn
from torch.optim import lr_scheduler as oracle

from shards.errors import UserError
from shards.index import open_set
from toolkit import checkpoint, history, loop
from toolkit.__main__ import main
from toolkit.config import parse
from toolkit.history import History, best, drops, stopped
from toolkit.lr_range import steepest, sweep
from toolkit.optim import Average, decays, learning_rate, make_optimizer
from toolkit.schema import OptimConfig, TrainConfig
from toolkit.world import World, start

TOTAL, PER_EPOCH, WARMUP = 97, 10, 15
SHARE = 1 / (25 * 1e4)  # where torch's onecycle ends: 1 / (div_factor * final_div_factor)


def torch_rates(schedule, optimizer):
    """torch's own rates for the settings of `test_rates_are_those_of_torch`."""
    left = TOTAL - WARMUP
    after = {
        "constant": lambda: oracle.LambdaLR(optimizer, lambda _: 1.0),
        "cosine": lambda: oracle.CosineAnnealingLR(optimizer, left, eta_min=SHARE),
        "linear": lambda: oracle.LinearLR(optimizer, 1.0, SHARE, left),
        "onecycle": lambda: oracle.OneCycleLR(optimizer, 1.0, TOTAL, cycle_momentum=False),
    }
    if schedule == "onecycle":
        scheduler = after[schedule]()
    else:
        warmup = oracle.LinearLR(optimizer, 1 / (WARMUP + 1), 1.0, WARMUP)
        scheduler = oracle.SequentialLR(optimizer, [warmup, after[schedule]()], [WARMUP])
    for _ in range(TOTAL):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "onecycle"])
def test_rates_are_those_of_torch(schedule):
    config = OptimConfig(lr=1.0, schedule=schedule, warmup_epochs=1.5, end_factor=SHARE)
    expected = list(torch_rates(schedule, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)))
    found = [learning_rate(config, step, TOTAL, PER_EPOCH) for step in range(TOTAL)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert max(found) > 0.999 and len(set(found)) > 15


def test_onecycle_of_any_length_is_that_of_torch():
    for total, rise in ((1, 0.3), (2, 0.5), (3, 0.3), (10, 0.0), (11, 0.9), (40, 0.25)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        try:
            torch_cycle = oracle.OneCycleLR(
                optimizer, 2.0, total, pct_start=rise, cycle_momentum=False
            )
        except ZeroDivisionError:  # torch's own, where the peak is at step 0
            continue
        config = OptimConfig(lr=2.0, schedule="onecycle", pct_start=rise, end_factor=SHARE)
        for step in range(total):
            expected = torch_cycle.get_last_lr()[0]
            assert learning_rate(config, step, total, 1) == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            if step + 1 < total:
                torch_cycle.step()
    peak_first = OptimConfig(lr=2.0, schedule="onecycle", pct_start=0.5)
    assert learning_rate(peak_first, 0, 2, 1) == 2.0


@pytest.mark.parametrize("metric, mode", [("loss", "min"), ("macro_f1", "max")])
@pytest.mark.parametrize(
    "patience, cooldown, threshold", [(0, 0, 1e-4), (2, 0, 0.05), (1, 3, 0.0), (3, 2, 0.01)]
)
def test_the_plateau_is_that_of_torch(metric, mode, patience, cooldown, threshold):
    values = np.random.default_rng(patience).uniform(0.4, 0.6, 60) - 0.002 * np.arange(60)
    config = OptimConfig(
        lr=0.3, schedule="plateau", warmup_epochs=0, plateau_metric=metric, plateau_factor=0.7,
        plateau_patience=patience, plateau_cooldown=cooldown, plateau_threshold=threshold,
        end_factor=1e-3,
    )  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    scheduler = oracle.ReduceLROnPlateau(
        optimizer, mode, 0.7, patience, threshold, cooldown=cooldown, min_lr=3e-4, eps=0
    )
    entries, rates = [], []
    for value in values:
        entries.append({metric: float(value)})
        scheduler.step(value)
        rates.append(learning_rate(config, 50, 60, 1, drops(entries, config)))
        assert rates[-1] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
    assert len(set(rates)) > 3
    assert (min(rates) == pytest.approx(3e-4)) == (patience == 0)  # the floor was reached


def test_what_decays():
    yes = ["stages.0.conv1.weight", "head.1.weight", "token_mixer.weight", "position.proj.weight"]
    no = ["cls_token", "pos_embed", "encoder.pos_embed", "blocks.0.relative_position_bias_table"]
    no += ["dist_token", "reg_tokens", "embeddings.position_embeddings.weight", "cls", "cls.weight"]
    matrix = torch.zeros(1, 2)
    assert [name for name in yes + no if decays(name, matrix)] == yes
    assert not decays("norm.weight", torch.zeros(2)) and not decays("scale", torch.zeros(()))


@pytest.mark.parametrize("name, after", [("adamw", 1 - 0.1 * 0.5), ("adam", 0.9), ("sgd", 0.905)])
def test_weight_decay_of_each_optimiser(name, after):
    """Gradient 0: AdamW shrinks by lr * decay, Adam steps lr along the sign, SGD by lr * decay and
    Nesterov's share of it."""
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bias = model.bias.item()
    optimizer.step()
    assert model.weight.item() == pytest.approx(after, abs=1e-6)
    assert model.bias.item() == bias


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_has_no_fused_kernel_trains_without(name):
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = make_optimizer(model, OptimConfig(name=name, lr=0.1, weight_decay=0))
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert (model.weight.real < 1).all()


def test_adam_takes_its_betas():
    parameter = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(parameter.weight)
    config = OptimConfig(name="adam", lr=1.0, weight_decay=0, beta1=0.5, beta2=0.75)
    optimizer = make_optimizer(parameter, config)
    for gradient in (1.0, 3.0):
        parameter.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
    mean, square = (0.25 * 1 + 0.5 * 3) / 0.75, (0.1875 * 1 + 0.25 * 9) / 0.4375
    assert parameter.weight.item() == pytest.approx(-1 - mean / square**0.5, rel=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.97])
def test_the_average_is_that_of_arithmetic(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    average = Average(model, decay, World(0, 1, torch.device("cpu")))
    expected = {name: t.numpy().astype(np.float64) for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 31):
        model(torch.randn(4, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step)
        d = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * tensor.numpy()
    found = average.module.state_dict()
    assert found.keys() == expected.keys()
    assert found.pop("1.num_batches_tracked") == 30  # a number is copied
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(tensor.numpy(), model.state_dict()[name].numpy(), rtol=1e-3)


def test_early_stopping_and_the_best_epoch():
    values = [0.5, 0.7, 0.7, 0.6, 0.69, 0.8]
    entries = [{"step": 10 * i, "epoch": i, "accuracy": v} for i, v in enumerate(values, 1)]
    train = TrainConfig(best_metric="accuracy", patience=3)
    assert [bool(stopped(entries[:n], train)) for n in range(7)] == [False] * 5 + [True, False]
    end = stopped(entries[:5], train)
    assert (end["step"], end["epoch"]) == (50, 5)
    assert "accuracy" in end["why"] and "0.7, that of epoch 2" in end["why"]
    assert best(entries[:5], "accuracy") == entries[1]  # the first of equals
    assert not stopped(entries[:5], TrainConfig(best_metric="accuracy"))
    falling = [{"step": e["step"], "epoch": e["epoch"], "eer": -e["accuracy"]} for e in entries]
    assert best(falling, "eer") == falling[-1]
    assert best([], "loss") is None


VALUES = {
    "run": {"name": "tones"},
    "model": {"name": "cnn_tiny", "norm_batch": 4},
    "optim": {"lr": 3e-3},
    "train": {"epochs": 8, "batch_size": 8, "log_every": 1, "threads": 1, "save_every": 3},
}


def make_config(tone_set, runs, **sections):
    """A training on the tones with a validation part, below `runs`."""
    values = {**VALUES, "data": {"shards": str(tone_set), "protocol": "kfold_nested"}}
    values["run"] = {**VALUES["run"], "dir": str(runs)}
    return parse({name: {**values.get(name, {}), **sections.get(name, {})} for name in values})


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"optim": {"schedule": "plateau"}, "data": {"protocol": "kfold"}},
         "optim.schedule=plateau needs a validation part.* use data.protocol=kfold_nested"),
        ({"train": {"patience": 3}, "data": {"protocol": "kfold"}},
         "train.patience=3 needs a validation part, and data.protocol=kfold has none"),
        ({"train": {"best_metric": "eer"}}, "train.best_metric=eer: for two classes, .* has 3"),
        ({"optim": {"schedule": "plateau", "plateau_metric": "eer"}}, "plateau_metric=eer: for"),
    ],
)  # fmt: skip
def test_what_the_data_cannot_decide_is_one_line(tone_set, tmp_path, sections, message):
    config, shard_set = make_config(tone_set, tmp_path, **sections), open_set(tone_set)
    numbers = np.arange(0 if config.data.protocol == "kfold" else 54)
    with pytest.raises(UserError, match=message) as error:
        history.check(config, shard_set, numbers)
    assert "\n" not in str(error.value)


def test_a_ranking_metric_needs_every_class(tone_set, tmp_path):
    config = make_config(tone_set, tmp_path, train={"best_metric": "roc_auc"})
    shard_set = open_set(tone_set)
    labels = shard_set.index["label"]
    history.check(config, shard_set, np.arange(54))
    with pytest.raises(UserError, match="the validation part has 2 of 3 classes"):
        history.check(config, shard_set, np.flatnonzero(labels != 1))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "adamax"}, "optim.name=adamax: one of adamw, adam, sgd"),
        ({"ema": 1.0}, "optim.ema=1.0: at least 0 and below 1"),
        ({"plateau_metric": "f1"}, "optim.plateau_metric=f1: one of macro_f1"),
    ],
)
def test_settings_off_the_scale(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        make_config("set", tmp_path, optim=values)


def test_rank_0_decides_for_all(tone_set, tmp_path):
    """Each rank finds other scores; all hear those of rank 0."""
    sections = {"train": {"patience": 2}, "optim": {"schedule": "plateau", "plateau_patience": 1}}
    config = make_config(tone_set, tmp_path, **sections)

    def decide():
        _, world = start("no", 1)
        past = History([], config)
        for epoch in range(1, 4):
            score = 0.5 + 0.1 * world.rank * epoch  # stands still on rank 0, rises on rank 1
            past.add({"macro_f1": score, "loss": 1 - score}, epoch, epoch, world.device)
        return past.entries, past.best, past.stopped, past.drops

    first, second = on_ranks(2, decide)
    assert first == second
    entries, chosen, stop, dropped = first
    assert [entry["macro_f1"] for entry in entries] == [0.5] * 3
    assert (chosen["epoch"], stop["epoch"], dropped) == (1, 3, 1)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lines(run: Path, kind: str):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def decided(tone_set, runs):
    """A training whose plateau drops the rate, with averaged weights, that stops early."""
    optim = {"name": "sgd", "lr": 0.1, "schedule": "plateau", "ema": 0.9}
    optim |= {"plateau_patience": 0, "plateau_factor": 0.5}
    train = {"epochs": 30, "patience": 3, "best_metric": "loss"}
    return make_config(tone_set, runs, optim=optim, train=train)


def test_two_ranks_stop_together_and_the_run_is_finished(tone_set, tmp_path):
    config = decided(tone_set, tmp_path)
    first, second = on_ranks(2, lambda: loop.fit(config))
    assert second == {} and first["stopped"], (first, second)
    run = config.folder()
    result = json.loads((run / "scores.json").read_text())
    values = [line["loss"] for line in lines(run, "eval")]
    last, chosen = len(values), values.index(min(values)) + 1
    assert last == chosen + 3 < 30  # patience
    assert (result["epoch"], result["stopped"]["epoch"]) == (chosen, last)
    assert result["steps"] == result["stopped"]["step"] == lines(run, "train")[-1]["step"]
    assert "for 3 evaluations" in result["stopped"]["why"]
    page = (run / "report.html").read_text()
    assert f"stopped early, after epoch {last}" in page
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    assert on_ranks(1, lambda: loop.fit(config)) == [result]
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")} == before


def run_and_die(config, module, function: str, when) -> int:
    """Train in a process that kills itself at the call of a module's function for which
    `when(number of the call, its arguments)`; how it ended."""

    def body():
        original, calls = getattr(module, function), []

        def dying(*words):
            calls.append(words)
            if when(len(calls), words):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*words)

        setattr(module, function, dying)
        loop.fit(config)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join(60)
    return process.exitcode


def last_saved(run: Path) -> int:
    found = checkpoint.checkpoints(run / "checkpoints")
    return checkpoint.step_of(found[-1]) if found else 0


def test_killed_four_times_it_decides_and_ends_as_if_it_never_was(tone_set, tmp_path):
    """Also between a checkpoint and the best weights that belong to it."""
    whole, killed = decided(tone_set, tmp_path / "whole"), decided(tone_set, tmp_path / "killed")
    (result,) = on_ranks(1, lambda: loop.fit(whole))
    rates = {line["lr"] for line in lines(whole.folder(), "train")[10:]}
    assert result["stopped"]["epoch"] > 5 and len(rates) >= 3  # the plateau has dropped the rate
    # 4 steps an epoch. Of the ends of two epochs better than those before, the checkpoint is left
    # and the best weights are not.
    values = [line["loss"] for line in lines(whole.folder(), "eval")]
    better = [4 * (n + 1) for n, v in enumerate(values) if n > 1 and v < min(values[:n])]
    assert len(better) >= 2
    first, second = better[0], better[-1]
    deaths = (
        (loop, "learning_rate", lambda call, words: call == 6),
        (checkpoint, "write_tensors", lambda *_: last_saved(killed.folder()) == first),
        (checkpoint, "write_tensors", lambda *_: last_saved(killed.folder()) == second),
        (loop, "learning_rate", lambda call, words: call == 11),
    )
    for module, function, when in deaths:
        assert run_and_die(killed, module, function, when) == -signal.SIGKILL
    assert not (killed.folder() / "scores.json").exists()
    assert on_ranks(1, lambda: loop.fit(killed))[0]["stopped"] == result["stopped"]
    for kind, names in (("train", ("step", "loss", "lr")), ("eval", ("step", "loss", "macro_f1"))):
        one, two = ([[line[n] for n in names] for line in lines(c.folder(), kind)]
                    for c in (whole, killed))  # fmt: skip
        assert one == two
    last = f"checkpoints/step-{result['steps']:08d}"
    for name in (f"{last}/model", f"{last}/ema", f"{last}/optimizer", "best"):
        file = f"{name}.safetensors"
        assert digest(whole.folder() / file) == digest(killed.folder() / file), file


def test_averaged_weights_are_what_is_scored_and_kept(tone_set, tmp_path):
    plain, averaged = (
        make_config(tone_set, tmp_path / str(ema), optim={"ema": ema}, train={"epochs": 2})
        for ema in (0.0, 0.9)
    )
    for config in (plain, averaged):
        on_ranks(1, lambda config=config: loop.fit(config))
    one, two = ([line["loss"] for line in lines(c.folder(), "train")] for c in (plain, averaged))
    assert one == two  # the average follows the training, it does not change it
    assert lines(plain.folder(), "eval") != lines(averaged.folder(), "eval")
    last = sorted((averaged.folder() / "checkpoints").glob("step-*"))[-1]
    best_weights = digest(averaged.folder() / "best.safetensors")
    assert digest(last / "model.safetensors") != best_weights
    if json.loads((averaged.folder() / "scores.json").read_text())["epoch"] == 2:
        assert digest(last / "ema.safetensors") == best_weights


def test_a_dry_run_inside_an_epoch_decides_nothing(tone_set, tmp_path):
    whole, tried = (decided(tone_set, tmp_path / name) for name in ("whole", "tried"))
    (result,) = on_ranks(1, lambda: loop.fit(whole))
    words = tried.to_dict()
    words["train"]["max_steps"] = lines(whole.folder(), "eval")[1]["step"] - 1
    (dry,) = on_ranks(1, lambda: loop.fit(parse(words)))
    assert dry["epoch"] == 1 and not dry["stopped"]
    assert on_ranks(1, lambda: loop.fit(tried))[0]["stopped"] == result["stopped"]
    files = [config.folder() / "best.safetensors" for config in (whole, tried)]
    assert digest(files[0]) == digest(files[1])


def test_the_steepest_descent_is_where_the_curve_says():
    place = np.arange(100)
    fall = 2.3 - 1.5 / (1 + np.exp(-(place - 60) / 4))  # steepest at 60, by construction
    rise = np.exp(np.maximum(0, place - 80) / 2.0) - 1
    noise = 0.02 * np.random.default_rng(0).normal(size=100)
    smooth, found = steepest(fall + rise + noise)
    assert abs(found - 60) <= 3
    np.testing.assert_allclose(smooth[:75], fall[:75], atol=0.06)
    assert steepest(np.append(fall[:70], np.nan))[1] == pytest.approx(60, abs=1)
    assert steepest(2.3 + noise / 10)[1] is None


def test_lr_find_suggests_a_rate_and_leaves_the_run_alone(tone_set, tmp_path):
    config = make_config(tone_set, tmp_path / "runs", data={"protocol": "kfold"})
    file, out = tmp_path / "tones.yaml", tmp_path / "curve.png"
    file.write_text(yaml.safe_dump(config.to_dict()))
    words = ["lr_find", str(file), "--optim.weight_decay=0", f"--out={out}", "--steps=60"]
    assert on_ranks(1, lambda: main(words)) == [0]
    assert out.read_bytes().startswith(b"\x89PNG") and not (tmp_path / "runs").exists()
    for more in ["--lowest=2"], ["--steps=3"], ["--optim.weight_decy=0"], ["--highest=2e-6"]:
        assert on_ranks(1, lambda more=more: main([*words, *more])) == [2], more


def test_a_sweep_raises_the_rate_step_by_step(tone_set, tmp_path):
    config, tried = make_config(tone_set, tmp_path), np.geomspace(1e-5, 1e4, 40)
    ((rates, losses),) = on_ranks(1, lambda: sweep(config, tried))
    assert 5 < len(rates) == len(losses) and np.array_equal(rates, tried[: len(rates)])
    assert losses[0] == pytest.approx(np.log(3), abs=0.05)  # an untrained model of 3 classes
    assert losses.min() < 0.9 * losses[0]
