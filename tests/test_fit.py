"""Training from end to end: on one process and two, killed and resumed, refused in one line."""

import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
import yaml
from processes import ROOT, forked, forked_ranks, on_ranks, train
from runs import config_file, records

from shards.durable import sha256
from shards.index import ROW, ShardSet
from shards.loader import Loader
from shards.order import Order, plan_batch
from toolkit import checkpoint
from toolkit.augment import Augment, Transform
from toolkit.evaluate import log_probabilities
from toolkit.metrics import scores
from toolkit.models import build
from toolkit.schema import AugmentConfig, ModelConfig
from toolkit.world import start
from train import main

pytestmark = pytest.mark.usefixtures("no_pictures")

AUGMENT = [
    "--augment.time_roll=99", "--augment.mix=between_class", "--augment.gain_db=3",
    "--augment.eq_db=3", "--augment.noise_db=2", "--augment.cutouts=1", "--data.normalize=sample",
]  # fmt: skip


@pytest.fixture
def config(tone_set, tmp_path):
    """A small training on the tones, as a config file; its run goes below tmp_path."""
    return config_file(
        tmp_path, tone_set, optim={"lr": 3e-3}, train={"epochs": 8, "log_every": 1},
        augment={"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 4},
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    steps = records(run, "train")
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))  # each step once
    return [line["loss"] for line in steps]


def test_one_process_learns_and_leaves_a_whole_run(config, tmp_path):
    result = train(1, config, "--train.epochs=25")
    assert result.returncode == 0, result.stderr[-2000:]
    run = tmp_path / "runs/tones/fold-0"
    first, *_, last = losses(run)
    assert last < 0.5 * first
    result = json.loads((run / "scores.json").read_text())
    assert result["recording"]["accuracy"] > 0.6  # a constant guesser gets a third
    assert result["protocol"] == "kfold" and result["part"] == "test"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "best.safetensors",
        "model.json", "predictions.csv", "scores.json", "report.txt", "curves.png",
        "confusion_matrix.png",
    }  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    code, said = forked(config, "--train.epochs=25")
    assert code == 0 and "is finished" in said
    (run / "scores.json").unlink()  # what collect says of damaged predictions: scored anew
    (run / "predictions.csv").write_text("damaged")
    code, said = forked(config, "--train.epochs=25")
    assert code == 0 and "goes on after step" in said
    assert json.loads((run / "scores.json").read_text())["recording"] == result["recording"]


@pytest.mark.parametrize("microbatch", [[], ["--train.microbatch=4"]])
def test_two_processes_train_as_one(config, tmp_path, microbatch):
    """10 steps in float32; with microbatch 4 one process takes four micro-steps, two take two."""
    words = [config, "--train.max_steps=10", "--train.batch_size=16", *microbatch, *AUGMENT]
    for size, name in ((1, "one"), (2, "two")):
        for code, said in forked_ranks(size, *words, f"--run.name={name}"):
            assert code == 0, said
    one, two = (losses(tmp_path / "runs" / name / "fold-0") for name in ("one", "two"))
    assert len(one) == 10
    np.testing.assert_allclose(two, one, rtol=1e-4)
    run = tmp_path / "runs/two/fold-0"
    modes = {f.stat().st_mode for f in run.rglob("*") if f.suffix in (".json", ".safetensors")}
    assert (run / "scores.json").exists() and len(modes) == 1  # whoever shares a run reads it all


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_instants_it_ends_in_the_same_weights(tone_set, monkeypatch, processes):
    words = ["train_kills.py", "--n=4", f"--processes={processes}", f"--shards={tone_set}"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(ROOT / "bench"))

    def body():
        with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "bench/train_kills.py"), run_name="__main__")
        return end.value.code, said.getvalue()

    [(code, said)] = on_ranks(1, body, timeout=240)
    assert code == 0 and f"| {processes} | 4 | " in said, said


@pytest.mark.parametrize("instant", ["checkpoint", "latest"])
def test_killed_before_what_follows_its_last_checkpoint_it_catches_up(config, tmp_path, instant):
    """Right after the rename of that file; no other checkpoint is to come."""
    words = [config, "--train.epochs=2", "--train.keep_last=1", "--train.keep_epochs=true"]

    def files(run: str) -> dict[str, str]:
        folder = tmp_path / "runs" / run / "fold-0"
        found = [f for f in folder.rglob("*") if f.suffix == ".safetensors" or f.name == "latest"]
        return {str(file.relative_to(folder)): sha256(file) for file in found}

    assert forked(*words, "--run.name=whole")[0] == 0
    last = (tmp_path / "runs/whole/fold-0/checkpoints/latest").read_text()

    def dies() -> None:
        replace, awaited = os.replace, last if instant == "checkpoint" else "latest"

        def replace_and_die(source, target):
            replace(source, target)
            if Path(target).name == awaited and Path(target).with_name(last).exists():
                os._exit(9)

        os.replace = replace_and_die
        sys.argv = ["train.py", *words, "--run.name=killed"]
        main()

    assert on_ranks(1, dies) == [None]
    assert files("killed") != files("whole")
    assert forked(*words, "--run.name=killed")[0] == 0
    assert files("killed") == files("whole")


def test_a_disk_that_is_full_ends_it_with_a_line_and_room_brings_it_back(
    config, tmp_path, small_disk, monkeypatch
):
    """From the checkpoint of step 4 on; in the end metrics.jsonl stops in the middle of a line."""
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    words = [config, "--train.max_steps=40", "--train.save_every=2", "--train.keep_last=3"]
    here, run = [*words, f"--run.dir={small_disk}"], small_disk / "tones/fold-0"
    write, filler = checkpoint.write, small_disk / "filler"

    def fill_up(folder, step, *groups):
        if step == 4:
            with suppress(OSError), open(filler, "wb", buffering=0) as out:
                while out.write(bytes(4096)):
                    pass
        write(folder, step, *groups)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", fill_up)
        code, said = forked(*here)
    assert code == 1 and "the checkpoint of step 4 could not be written" in said
    assert f"error: No space left on device: {run}/metrics.jsonl; make room" in said
    assert (run / "checkpoints/latest").read_text() == "step-00000002"
    filler.unlink()
    assert forked(*here)[0] == forked(*words)[0] == 0
    whole = tmp_path / "runs/tones/fold-0"
    assert losses(run) == losses(whole) and len(losses(run)) == 40
    assert sha256(run / "best.safetensors") == sha256(whole / "best.safetensors")


def test_nested_folds_choose_on_the_validation_fold(config, tmp_path):
    words = ["--data.protocol=kfold_nested", "--train.epochs=4", "--optim.warmup_epochs=5"]
    code, said = forked(config, *words)
    assert code == 0, said
    assert "optim.warmup_epochs=5 is longer than train.epochs=4: the rate never reaches" in said
    run = tmp_path / "runs/tones/fold-0"
    values = [(line["macro_f1"], -line["epoch"]) for line in records(run, "eval")]
    assert len(values) == 4
    assert json.loads((run / "scores.json").read_text())["epoch"] == -max(values)[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data.fold=9"], "data.fold=9"),
        (["--data.n_mels=64"], "n_mels: 32 there, 64 asked"),
        (["--train.epoch=2"], "did you mean epochs"),
        (["--data.shards=/nowhere"], "/nowhere: no shard set"),
        (["--train.precision=fp16"], "needs a GPU"),
        (["--train.batch_size=9"], "nearest: train.batch_size=8 or 12"),
        (["--train.resume=must"], "start it with --train.resume=auto"),
    ],
)
def test_bad_words_are_one_line_and_code_2(config, tmp_path, words, message):
    if "fp16" in words[0] and torch.cuda.is_available():
        pytest.skip("a GPU has fp16")
    code, errors = forked(config, *words)
    assert code == 2
    lines = [line for line in errors.splitlines() if line]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "runs").exists()


def random_set(folder: Path, n: int) -> ShardSet:
    """A shard set of noise whose labels follow its level; a tar without headers will do."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, n)
    samples = (generator.normal(size=(n, 16, 20)) + labels[:, None, None]).astype(np.float16)
    (folder / "samples-000000.tar").write_bytes(samples.tobytes())
    rows = np.zeros(n, ROW)
    rows["offset"] = np.arange(n) * samples[0].nbytes
    rows["label"], rows["recording"] = labels, np.arange(n)
    rows["xxh3"] = [xxhash.xxh3_64_intdigest(sample) for sample in samples]
    np.save(folder / "index.npy", rows)
    info = {"shape": [16, 20], "classes": list("abc"), "shards": [{"name": "samples-000000.tar"}]}
    return ShardSet(folder, info)


def test_evaluation_on_1_2_and_3_processes(tmp_path):
    shard_set = random_set(tmp_path, 101)

    def evaluate():
        _, world = start("no", 1)
        torch.manual_seed(0)
        model = build(ModelConfig(name="cnn_tiny"), 3, shard_set.shape)
        transform = Transform(np.zeros(16, np.float32), np.ones(16, np.float32), world.device)
        numbers = np.arange(101)
        found = log_probabilities(model, transform, shard_set, numbers, world, 8)
        return world.rank, world.size, found, scores(shard_set.index["label"], found)

    (_, _, one, expected), *_ = on_ranks(1, evaluate)
    assert one.shape == (101, 3) and len(np.unique(one[:, 0])) == 101
    for world_size in (2, 3):
        for i, (rank, size, found, result) in enumerate(on_ranks(world_size, evaluate)):
            assert (rank, size) == (i, world_size)
            np.testing.assert_allclose(found, one, atol=1e-6)
            for name, value in expected.items():
                if isinstance(value, float):
                    assert result[name] == pytest.approx(value, abs=1e-6), name


def test_two_and_three_processes_draw_the_same_samples_and_augment_them_alike(tmp_path):
    shard_set = random_set(tmp_path, 101)
    shard_set.info["mel"] = {"fmin": 0.0, "fmax": 4000.0}
    words = [word.partition("augment.")[2].partition("=") for word in AUGMENT[:-1]]
    on = AugmentConfig(**{key: yaml.safe_load(value) for key, _, value in words}, time_masks=1)

    def sequence():
        accelerator, world = start("no", 1)
        plan = plan_batch(24, 4, world.size, 4)
        transform = Transform(np.zeros(16, np.float32), np.ones(16, np.float32), world.device)
        augment = Augment(on, shard_set, transform, 5, 4)
        loader = Loader(
            shard_set, np.arange(101), Order(101, 24, 5), plan, world.rank, world.device
        )
        rows = []
        for step, batches in enumerate(loader.steps(0, 12)):
            for b in batches:
                x, y = augment(b, step + 1)
                number = torch.from_numpy(b.numbers)[:, None]
                rows.append(torch.cat([number, x.flatten(1), y], dim=1).double())
        mine = torch.cat(rows).view(1, 12, 24 // world.size, -1)
        return torch.cat(list(accelerator.gather(mine)), dim=1).numpy()

    expected = on_ranks(1, sequence)[0]
    assert expected.shape == (12, 24, 1 + 16 * 20 + 3)
    for world_size in (2, 3):
        ranks = on_ranks(world_size, sequence)
        assert len(ranks) == world_size
        for found in ranks:
            assert np.array_equal(found, expected)
