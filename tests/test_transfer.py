"""Weights from elsewhere, and parts that stay as they are through a training."""

import json
import logging

import pytest
import torch
from processes import on_ranks
from runs import config_file
from safetensors.torch import load_file, save_file

from launch.tasks import check_plan
from shards.errors import UserError
from toolkit.config import load
from toolkit.loop import fit
from toolkit.models import build
from toolkit.models.transfer import prepare
from toolkit.schema import ModelConfig

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = ModelConfig(name="cnn_tiny", norm_batch=2)


def saved(model, folder, classes=None):
    """`model` as a run leaves it in `folder`."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "best.safetensors")
    if classes:
        (folder / "model.json").write_text(json.dumps({"classes": classes}))
    return str(folder)


def begun(config, source, classes, shape=(32, 40), **settings):
    model = build(config, len(classes), shape)
    prepare(model, ModelConfig(name=config.name, init_from=source, **settings), classes)
    return model


def test_a_head_of_other_classes_begins_anew(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    there = build(TINY, 2, (32, 40))
    run = saved(there, tmp_path / "run", ["cat", "dog"])
    for classes in (["cat", "dog"], ["dog", "cat"], ["a", "b", "c"]):
        caplog.clear()
        torch.manual_seed(1)
        here = begun(TINY, run, classes)
        kept = classes == ["cat", "dog"]
        for name, tensor in there.state_dict().items():
            if name != "head.1.bias":  # 0 there and here
                same = torch.equal(tensor, here.state_dict()[name])
                assert same == (kept or name != "head.1.weight"), name
        assert ("begin anew: head.1.bias, head.1.weight" in caplog.text) != kept
        assert f"{17 if kept else 15} of 17 tensors loaded" in caplog.text


def test_positions_of_another_length_are_interpolated(tmp_path):
    config = ModelConfig(name="vit_small", dim=32, depth=1, heads=2)
    there = build(config, 2, (32, 64))
    run = saved(there, tmp_path / "run")
    torch.testing.assert_close(begun(config, run, "ab", (32, 64)).pos_embed, there.pos_embed)
    longer = begun(config, run, "ab", (32, 128)).pos_embed
    assert longer.shape == (32, 2, 8)
    pairs = torch.stack([longer[:, :, ::2].flatten(), there.pos_embed.flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.8


def test_what_cannot_be_had_is_told(tmp_path):
    (tmp_path / "run/fold-1").mkdir(parents=True)
    (tmp_path / "run/fold-1/best.safetensors").touch()
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    for source, settings, message in (
        ("run", {}, "name one of its folds: fold-1"),
        ("nowhere", {}, "no best.safetensors there"),
        ("run/fold-1", {}, "no .safetensors file"),
        ("other.safetensors", {}, "none of its tensors fit"),
    ):
        with pytest.raises(UserError, match=message):
            begun(TINY, str(tmp_path / source), "ab", **settings)
    for freeze, message in (
        (["feature"], "model.freeze=feature: no such part; did you mean features"),
        (["backbone", "head"], "nothing is left to train"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(build(TINY, 2, (32, 40)), ModelConfig(name="cnn_tiny", freeze=freeze), "ab")


def test_a_linear_probe_trains_the_head_alone_and_goes_on_where_it_stopped(tone_set, tmp_path):
    words = {"epochs": 1, "precision": "no"}
    file = config_file(tmp_path, tone_set, "", model={"dropout": 0.1}, train=words)

    def trained(name, *words):
        config = load([file, f"--run.name={name}", *words])
        (result,) = on_ranks(1, lambda: fit(config))
        assert "recording" in result, result
        return load_file(tmp_path / name / "fold-0/best.safetensors")

    first = build(ModelConfig(name="cnn_tiny"), 3, (32, 63)).state_dict()
    save_file(first, tmp_path / "first.safetensors")
    probe = ["--model.freeze=[backbone]", f"--model.init_from={tmp_path}/first.safetensors"]
    trained("probe", *probe, "--train.max_steps=2")
    (tmp_path / "first.safetensors").rename(tmp_path / "gone")  # a checkpoint has it all
    check_plan([load([file, "--run.name=probe", *probe])])
    resumed = trained("probe", *probe, "--train.max_steps=4")
    (tmp_path / "gone").rename(tmp_path / "first.safetensors")
    whole = trained("whole", *probe, "--train.max_steps=4")
    for name, tensor in first.items():
        assert torch.equal(tensor, resumed[name]) == (not name.startswith("head.")), name
        assert torch.equal(whole[name], resumed[name]), name
