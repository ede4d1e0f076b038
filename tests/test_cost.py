"""What models cost, against arithmetic."""

from pathlib import Path

import pytest

from shards.errors import UserError
from toolkit.config import load
from toolkit.cost import input_of, measure, table
from toolkit.schema import ModelConfig

ROOT = Path(__file__).parent.parent


def test_a_small_net_by_hand():
    cost = measure(ModelConfig(name="cnn_tiny"), 2, (128, 250))
    first, second, third = 128 * 250, 64 * 125, 32 * 62
    products = 9 * (first * 16 + second * 16 * 32 + third * 32 * 64) + 64 * 2
    assert (cost.parameters, cost.flops) == (23_538, 2 * products)
    # The input; of each block what batch norm took and what ReLU gave; of the two pools what they
    # gave, and 64-bit places.
    cells = first + 2 * (16 * first + 32 * second + 64 * third) + 3 * (16 * second + 32 * third)
    assert cost.activations == pytest.approx(4 * cells, rel=1e-3)


def test_attention_keeps_no_matrix_but_counts_its_products():
    config = ModelConfig(name="vit_small", dim=32, depth=1, heads=2)
    short, long = (measure(config, 2, (128, frames)) for frames in (512, 2048))
    assert long.activations < 4.1 * short.activations
    n, d = 8 * 128 + 1, 32
    blocks = 4 * n * d * d + 2 * n * n * d + 8 * n * d * d
    assert long.flops == pytest.approx(2 * (blocks + (n - 1) * 256 * d), rel=0.01)


def test_the_input_of_a_config(tone_set):
    file = str(ROOT / "configs/kfold_cnn_conv1d.yaml")
    shape, n_classes, note = input_of(load([file, "--data.shards=nowhere"]))
    assert (shape, n_classes) == ((128, 216), 2) and "nowhere is not there" in note
    for shards, bands in (("nowhere", 128), (str(tone_set), 32)):  # what the model sees of it
        words = [f"--data.shards={shards}", "--augment.crop_frames=40"]
        assert input_of(load([file, *words]))[0] == (bands, 40)
    assert input_of(load([file, f"--data.shards={tone_set}"])) == ((32, 63), 3, "")
    with pytest.raises(UserError, match="nowhere"):
        input_of(load([file, "--data.shards=nowhere", "--data.n_mels="]))


def test_the_table(tone_set, monkeypatch):
    monkeypatch.setattr("toolkit.cost.REGISTRY", dict.fromkeys(["cnn_small", "cnn_tiny"]))
    file = str(ROOT / "configs/demo.yaml")
    text = table([file, f"--data.shards={tone_set}", "--model.filters=[4, 4, 4]"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert "32 bands x 63 frames, 3 classes" in text
    assert rows[2][:2] == ["cnn_small", "4,878,851"]
    assert rows[3][:2] == ["cnn_tiny (the config's)", str(9 * (4 + 16 + 16) + 2 * 12 + 3 * 5)]
