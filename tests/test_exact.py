"""train.exact: one SHA-256 of everything a training leaves, whatever processes it ran on."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from processes import on_ranks
from runs import records

from shards.durable import sha256
from shards.errors import UserError
from toolkit import exact, figures, report
from toolkit.checkpoint import checkpoints
from toolkit.claim import check_same
from toolkit.config import parse
from toolkit.loop import fit
from toolkit.step import Stepper
from toolkit.world import World, start

STEPS, KILLED_AT = 50, 23


@pytest.fixture
def values(tone_set, tmp_path):
    """Every random part of a training, and everything that is decided by a validation score."""
    return {
        "run": {"name": "one", "dir": str(tmp_path)},
        "data": {"shards": str(tone_set), "protocol": "kfold_nested", "samples_per_epoch": 96},
        "model": {"name": "cnn_tiny", "norm_batch": 2, "dropout": 0.2},
        "optim": {
            "lr": 3e-3, "ema": 0.9, "schedule": "plateau", "plateau_patience": 0,
            "plateau_factor": 0.5,
        },
        "augment": {
            "time_roll": 99, "mix": "between_class", "gain_db": 3, "eq_db": 3, "noise_db": 2,
            "cutouts": 1, "time_masks": 1, "time_width": 8,
        },
        "train": {
            "exact": True, "batch_size": 8, "microbatch": 2, "threads": 1, "epochs": 20,
            "max_steps": STEPS, "save_every": 10, "log_every": 1, "best_metric": "loss",
        },
    }  # fmt: skip


def left_by(run: Path) -> dict[str, str]:
    """SHA-256 of all weights, moments and predictions, and what was measured on the way."""
    last = checkpoints(run / "checkpoints")[-1]
    assert last.name == f"step-{STEPS:08d}"
    files = [*sorted(last.glob("*.safetensors")), run / "best.safetensors", run / "predictions.csv"]
    assert len(files) == 5
    told = ("step", "loss", "grad_norm", "lr", "macro_f1", "accuracy")
    measured = [[line.get(name) for name in told] for line in records(run)]
    found = {file.name: sha256(file) for file in files}
    return found | {"metrics": json.dumps(measured)}


@pytest.mark.slow
def test_one_hash_of_a_run_on_1_and_of_one_killed_on_2_that_goes_on_on_1_and_on_4(values, tmp_path):
    def train(folder: str, world_size: int, killed: bool = False) -> dict[str, str]:
        """Trains in new processes; `killed` is SIGKILL for each of them as it takes a step."""
        config = parse(values | {"run": {"name": "run", "dir": str(tmp_path / folder)}})

        def run() -> bool:
            step = Stepper.__call__

            def step_or_die(self, batches, number, *words):
                if killed and number == KILLED_AT:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, batches, number, *words)

            Stepper.__call__ = step_or_die
            figures.to_png = report.write_page = lambda *words: b""  # take longer than the training
            fit(config)
            return True

        assert on_ranks(world_size, run) == [None if killed else True] * world_size
        return {} if killed else left_by(config.folder())

    expected = train("one", 1)
    train("killed", 2, killed=True)
    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    assert train("killed", 1) == expected
    assert train("other", 4) == expected


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"microbatch": None}, "needs train.microbatch: samples of a forward"),
        ({"threads": None}, "needs train.threads: threads a process"),
        ({"microbatch": 3}, "none of train.microbatch=3; those that fit: 8, 4, 2"),
        ({"batch_size": 24, "microbatch": 4}, "those that fit: 24, 12, 6"),
        ({"batch_size": 7}, "none, batch norm takes model.norm_batch=2"),
    ],
)
def test_numbers_that_no_tree_holds_are_refused(values, changed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(values | {"train": values["train"] | changed})


def test_a_launch_that_cannot_give_the_same_bits_is_refused(values, monkeypatch):
    train = parse(values).train
    uneven = "4 microbatches of train.microbatch=2 do not split evenly over {} processes"

    def tell(threads: int = 1) -> str:
        accelerator, world = start("no", threads)
        accelerator.wait_for_everyone()  # or else the first to be refused takes the store away
        monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
        with pytest.raises(UserError) as told:
            exact.prepare(train, world)
        return str(told.value)

    for world_size, nearest in ((3, 2), (8, 4)):
        for said in on_ranks(world_size, tell):
            assert uneven.format(world_size) in said and said.endswith(f"nearest: {nearest}")
    for said in on_ranks(2, lambda: tell(1 + int(os.environ["RANK"]))):
        assert "threads is 1 on rank 0 and 2 on rank 1" in said
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="does not go with FSDP"):
        exact.check_launch(train, World(0, 1, torch.device("cpu")))


def test_what_decides_the_last_bits_stays_as_it_was(values, tmp_path):
    begun = parse(values)
    for name, value in (("microbatch", 4), ("threads", 2)):
        words = values["train"] | {name: value}
        with pytest.raises(UserError, match=rf"train\.{name}: [12] there, [24] asked"):
            check_same(parse(values | {"train": words}), begun.to_dict(), tmp_path)
        plain = parse(values | {"train": words | {"exact": False}})
        with pytest.raises(UserError, match=r"train\.exact: True there") as told:
            check_same(plain, begun.to_dict(), tmp_path)
        assert name not in str(told.value)


def test_deterministic_kernels_are_asked_for(values):
    def flags() -> tuple[bool, ...]:
        _, world = start("no", 1)
        exact.prepare(parse(values).train, world)
        cudnn = torch.backends.cudnn
        return (
            torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark,
            os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8",
        )  # fmt: skip

    assert on_ranks(1, flags) == [(True, True, False, True)]
