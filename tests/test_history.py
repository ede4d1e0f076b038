"""What scores decide: the best epoch, the plateau, early stopping; on all ranks, after a kill."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import on_ranks
from runs import configured, records

from shards.durable import sha256
from shards.errors import UserError
from shards.index import ShardSet, open_set
from toolkit import checkpoint, history, loop
from toolkit.config import parse
from toolkit.data import open_data
from toolkit.history import History, best, stopped
from toolkit.schema import TrainConfig
from toolkit.world import start

pytestmark = pytest.mark.usefixtures("no_pictures")


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


def make_config(tone_set, runs, data=None, train=None, **sections):
    """A training on the tones with a validation part, below `runs`."""
    data = {"protocol": "kfold_nested"} | (data or {})
    train = {"epochs": 8, "log_every": 1, "save_every": 3} | (train or {})
    sections["optim"] = {"lr": 3e-3} | sections.get("optim", {})
    return configured(tone_set, runs, data=data, train=train, **sections)


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
    config = make_config(tone_set, tmp_path, **sections)
    shard_set = open_data(config.data)
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
    alone = ShardSet(tone_set, shard_set.info | {"classes": ["low"]})
    with pytest.raises(UserError, match="low is its only class, and there is nothing to tell"):
        history.check(config, alone, np.arange(54))


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
    values = [line["loss"] for line in records(run, "eval")]
    last, chosen = len(values), values.index(min(values)) + 1
    assert last == chosen + 3 < 30  # patience
    assert (result["epoch"], result["stopped"]["epoch"]) == (chosen, last)
    assert result["steps"] == result["stopped"]["step"] == records(run, "train")[-1]["step"]
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


@pytest.mark.slow
def test_killed_four_times_it_decides_and_ends_as_if_it_never_was(tone_set, tmp_path):
    """Also between a checkpoint and the best weights that belong to it."""
    whole, killed = decided(tone_set, tmp_path / "whole"), decided(tone_set, tmp_path / "killed")
    (result,) = on_ranks(1, lambda: loop.fit(whole))
    rates = {line["lr"] for line in records(whole.folder(), "train")[10:]}
    assert result["stopped"]["epoch"] > 5 and len(rates) >= 3  # the plateau has dropped the rate
    # 4 steps an epoch. Of the ends of two epochs better than those before, the checkpoint is left
    # and the best weights are not.
    values = [line["loss"] for line in records(whole.folder(), "eval")]
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
        one, two = ([[line[n] for n in names] for line in records(c.folder(), kind)]
                    for c in (whole, killed))  # fmt: skip
        assert one == two
    last = f"checkpoints/step-{result['steps']:08d}"
    for name in (f"{last}/model", f"{last}/ema", f"{last}/optimizer", "best"):
        file = f"{name}.safetensors"
        assert sha256(whole.folder() / file) == sha256(killed.folder() / file), file


def test_averaged_weights_are_what_is_scored_and_kept(tone_set, tmp_path):
    plain, averaged = (
        make_config(tone_set, tmp_path / str(ema), optim={"ema": ema}, train={"epochs": 2})
        for ema in (0.0, 0.9)
    )
    for config in (plain, averaged):
        on_ranks(1, lambda config=config: loop.fit(config))
    one, two = ([line["loss"] for line in records(c.folder(), "train")] for c in (plain, averaged))
    assert one == two  # the average follows the training, it does not change it
    assert records(plain.folder(), "eval") != records(averaged.folder(), "eval")
    last = sorted((averaged.folder() / "checkpoints").glob("step-*"))[-1]
    best_weights = sha256(averaged.folder() / "best.safetensors")
    assert sha256(last / "model.safetensors") != best_weights
    if json.loads((averaged.folder() / "scores.json").read_text())["epoch"] == 2:
        assert sha256(last / "ema.safetensors") == best_weights


def test_a_dry_run_inside_an_epoch_decides_nothing(tone_set, tmp_path):
    whole, tried = (decided(tone_set, tmp_path / name) for name in ("whole", "tried"))
    (result,) = on_ranks(1, lambda: loop.fit(whole))
    words = tried.to_dict()
    words["train"]["max_steps"] = records(whole.folder(), "eval")[1]["step"] - 1
    (dry,) = on_ranks(1, lambda: loop.fit(parse(words)))
    assert dry["epoch"] == 1 and not dry["stopped"]
    assert on_ranks(1, lambda: loop.fit(tried))[0]["stopped"] == result["stopped"]
    files = [config.folder() / "best.safetensors" for config in (whole, tried)]
    assert sha256(files[0]) == sha256(files[1])
