"""Every launch shape loads and runs, and trains the same: one process, two, ZeRO 1 to 3, FSDP."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from processes import PLAIN, ROOT, environment, on_ranks
from runs import config_file, records
from safetensors.torch import load_file
from sharded import pretend

from shards.command import guard
from shards.errors import UserError
from shards.order import plan_batch
from toolkit import world
from toolkit.checkpoint import checkpoints
from toolkit.config import load
from toolkit.loop import fit
from toolkit.schema import OptimConfig
from toolkit.strategy import Strategy

NARROW = {"filters": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}
SHAPES = ["cpu", "cpu_2", "gpu_1", "gpu_n", "multinode", "fsdp"]
SHAPES += [f"deepspeed_zero{stage}" for stage in (1, 2, 3)]
#: What a strategy imports as it begins, and a fork should find imported.
ON_THE_WAY = {
    "cpu": (),
    "fsdp": ("torch.distributed.fsdp", "torch._dynamo"),
    "deepspeed": ("deepspeed.runtime.zero.muon.muon_optimizer", "transformers.trainer_pt_utils"),
}
SHARDED = [shape for shape in SHAPES if shape.startswith(("deepspeed", "fsdp"))]
STRATEGY = ("ACCELERATE", "FSDP")  #: variables of accelerate's that say which
pytestmark = pytest.mark.usefixtures("no_pictures")


def needs_deepspeed(shape):
    if shape.startswith("deepspeed") and not importlib.util.find_spec("deepspeed"):
        pytest.skip("DeepSpeed is not installed: pip install .[deepspeed]")


def launch(shape: str, *words: str) -> str:
    """`accelerate launch` with a file of ours, from a shell; what it prints."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0"]
    command += [f"--config_file={ROOT / 'launch' / shape}.yaml"]
    env = environment() | {"PYTHONPATH": f"{PLAIN}:{ROOT}"}
    result = subprocess.run([*command, *words], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def variables(shape: str) -> dict[str, str]:
    """What `accelerate launch` with a file of ours sets for the processes that it would start."""
    found: dict[str, str] = {}
    words = [f"--config_file={ROOT / 'launch' / shape}.yaml", "--num_processes=2", "train.py"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.run.run", lambda args: found.update(os.environ))
        launch_command(launch_command_parser().parse_args(words))
    return found


def forked(shape: str, *words: str) -> list[str | None]:
    """The same on two forked processes, which need not import anything again; what each raised.

    Launching anew costs ten seconds a time, of which the training is two.
    """
    needs_deepspeed(shape)
    for module in ON_THE_WAY[shape.partition("_")[0]]:
        importlib.import_module(module)
    there = variables(shape) if shape != "cpu" else {}

    def body() -> None:
        os.environ.update((k, v) for k, v in there.items() if k.startswith(STRATEGY))
        if shape in SHARDED:
            pretend()
        fit(load(list(words)))

    return on_ranks(1 if shape == "cpu" else 2, body)


def train_forked(shape: str, *words: str) -> None:
    assert set(forked(shape, *words)) == {None}


@pytest.fixture(scope="module")
def config(tone_set, tmp_path_factory):
    """Batch norm, dropout, augmentation, clipping, an average of the weights that is evaluated
    every other step, and two or four micro-steps."""
    folder = tmp_path_factory.mktemp("launch")
    file = config_file(
        folder, tone_set, run={"name": "one"}, data={"protocol": "kfold_nested", "fold": 0},
        model={"name": "cnn_small", "norm_steps": 2, "dropout": 0.2, **NARROW},
        optim={"lr": 2e-4, "ema": 0.9},
        augment={"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 4},
        train={"epochs": 10, "batch_size": 16, "microbatch": 4, "log_every": 1, "max_steps": 20,
               "precision": "no", "best_metric": "loss"},
    )  # fmt: skip
    return Path(file)


@pytest.fixture(scope="module")
def one(config):
    """The run of one process."""
    train_forked("cpu", str(config))
    return config.parent / "runs/one/fold-0"


def losses(run: Path) -> np.ndarray:
    """Loss and gradient norm of each step."""
    steps = records(run, "train")
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return np.array([[line["loss"], line["grad_norm"]] for line in steps])


def stored(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, and the best weights."""
    files = [run / "best.safetensors", *checkpoints(run / "checkpoints")[-1].glob("*.safetensors")]
    return {f"{f.stem}.{name}": t for f in files for name, t in load_file(f).items()}


def assert_same_training(run: Path, one: Path) -> None:
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-4)
    judged, expected = ({x["step"]: x["loss"] for x in records(r, "eval")} for r in (run, one))
    assert len(expected) == 10
    for step, loss in expected.items():
        assert judged[step] == pytest.approx(loss, rel=1e-3)
    mine, theirs = stored(run), stored(one)
    assert mine.keys() == theirs.keys()
    assert any(name.endswith(".exp_avg_sq") for name in mine)
    for name, value in theirs.items():
        scale = value.abs().max().item() + 1e-12
        torch.testing.assert_close(mine[name], value, rtol=0, atol=2e-3 * scale, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_is_known_to_accelerate_and_opens_with_its_command(shape):
    file = ROOT / "launch" / f"{shape}.yaml"
    loaded = load_config_from_file(str(file))
    assert loaded.mixed_precision in ("no", "bf16")
    assert (loaded.deepspeed_config or {}).get("zero_stage", 0) == int("0" + shape[14:])
    opening = f"# accelerate launch --config_file launch/{shape}.yaml "
    assert file.read_text().startswith(opening) and "train.py CONFIG" in file.read_text()
    assert f"launch/{shape}.yaml" in (ROOT / "README.md").read_text()


def test_there_is_no_other_file():
    assert {file.stem for file in (ROOT / "launch").glob("*.yaml")} == set(SHAPES)


@pytest.mark.slow
def test_the_shape_for_two_processes_on_the_cpu(config):
    """That for one is launched in test_signals.py."""
    launch("cpu_2", str(ROOT / "train.py"), str(config), "--train.max_steps=2", "--run.name=two")
    run = config.parent / "runs/two/fold-0"
    assert json.loads((run / "scores.json").read_text())["world_size"] == 2
    assert json.loads((run / "environment.json").read_text())["device"] == "cpu"


@pytest.mark.slow
def test_forks_get_the_variables_that_a_launch_sets(tmp_path):
    told = {k: v for k, v in variables("fsdp").items() if k.startswith(STRATEGY)}
    program = tmp_path / "tell.py"
    program.write_text(f"""if True:
        import json, os, pathlib
        told = {{k: v for k, v in os.environ.items() if k.startswith({STRATEGY})}}
        file = pathlib.Path({str(tmp_path)!r}, os.environ["RANK"] + ".json")
        file.write_text(json.dumps(told))
    """)
    launch("fsdp", "--num_processes=2", str(program))
    assert "FSDP_VERSION" in told
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [told] * 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", SHARDED)
def test_sharded_over_two_processes_it_trains_as_one(config, one, shape):
    """20 steps in float32, two micro-steps on each process, four on one."""
    train_forked(shape, str(config), f"--run.name={shape}")
    assert_same_training(config.parent / f"runs/{shape}/fold-0", one)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_goes_on_under_any_strategy(config, one):
    words = [str(config), "--run.name=chain"]
    chain = ["cpu_2", "deepspeed_zero1", "fsdp", "deepspeed_zero3", "cpu"]
    for stop, shape in zip((3, 6, 10, 15, 20), chain, strict=True):
        train_forked(shape, *words, f"--train.max_steps={stop}")
    assert_same_training(config.parent / "runs/chain/fold-0", one)


@pytest.mark.parametrize(
    "kind, state, anew",
    [
        (torch.optim.AdamW, {"0.exp_avg": torch.zeros(2, 3)}, 1),
        (torch.optim.AdamW, {}, 1),
        (torch.optim.SGD, {}, 0),  # without momentum there is none
    ],
)
def test_a_state_of_another_optimiser_is_said_to_start_anew(kind, state, anew):
    def load_foreign() -> tuple[list[str], int]:
        accelerator, here = world.start("no", 1)
        model = torch.nn.Linear(3, 2)
        optimizer = kind(model.parameters())
        strategy = Strategy(
            accelerator, here, model, optimizer, plan_batch(4, None, 1), OptimConfig()
        )
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("toolkit.strategy").addHandler(handler)
        strategy.load_moments(state)
        return said, len(optimizer.state)

    [(said, entries)] = on_ranks(1, load_foreign)
    assert entries == 0 and len(said) == anew and all("starts anew" in line for line in said)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bf16_is_what_one_process_does(config):
    """Weights and moments stay float32; only the arithmetic of a forward is rounded."""
    words = [str(config), "--train.precision=bf16", "--train.max_steps=4"]
    words += ["--optim.name=sgd", "--optim.ema=0"]
    found = {}
    for shape in ("cpu", "fsdp", "deepspeed_zero3"):
        train_forked(shape, *words, f"--run.name=bf16_{shape}")
        run = config.parent / f"runs/bf16_{shape}/fold-0"
        found[shape] = losses(run)
        assert {value.dtype for value in stored(run).values()} == {torch.float32}, shape
        np.testing.assert_allclose(found[shape], found["cpu"], rtol=0.01, err_msg=shape)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_evaluation_of_uneven_shares_counts_each_sample_once(config):
    """15 samples, one at a time: 7 forwards on one rank and 8 on the other, each a collective."""
    words = [str(config), "--train.max_steps=1", "--model.norm_batch=1", "--train.microbatch=1"]
    found = {}
    for shape in ("cpu", "fsdp"):
        train_forked(shape, *words, f"--run.name=uneven_{shape}")
        file = config.parent / f"runs/uneven_{shape}/fold-0/scores.json"
        found[shape] = json.loads(file.read_text())["recording"]
    assert found["fsdp"]["n"] == found["cpu"]["n"]
    assert found["fsdp"]["loss"] == pytest.approx(found["cpu"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "variables, has_gpu, message",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, True, "pip install .[deepspeed]"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, True, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, False, "FSDP needs a GPU"),
    ],
)
def test_what_cannot_work_is_one_line_and_code_2(monkeypatch, capsys, variables, has_gpu, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "has_gpu", lambda: has_gpu)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert guard(lambda: world.start("no", 1)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_fp16_does_not_go_with_a_sharded_model(monkeypatch):
    monkeypatch.setattr(world, "has_gpu", lambda: True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="use bf16"):
        world.check_sharding("FSDP", "fp16")
