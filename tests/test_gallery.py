"""`python -m toolkit show_augment`: before and after, of a real little shard set."""

import matplotlib.image
import numpy as np
import pytest
from runs import config_file

from toolkit.__main__ import main
from toolkit.config import load
from toolkit.gallery import alone, first_batch


@pytest.fixture
def config(tone_set, tmp_path):
    return config_file(tmp_path, tone_set, augment={"gain_db": 10, "mix": "mixup"})


@pytest.mark.slow
def test_the_picture(config, tmp_path, capsys):
    assert main(["show_augment", config]) == 0
    assert main(["show_augment", config, f"--out={tmp_path / 'b.png'}", "--samples=4"]) == 0
    first, second = (tmp_path / "runs/tones-augment.png", tmp_path / "b.png")
    assert capsys.readouterr().out.split() == [str(first), str(second)]
    assert first.read_bytes() == second.read_bytes()
    pixels = matplotlib.image.imread(first)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100
    assert main(["show_augment", config, "--out=" + str(second), "--samples=2"]) == 0
    assert matplotlib.image.imread(second).shape[1] < 0.6 * pixels.shape[1]


def test_a_stage_is_one_augmentation_and_columns_are_of_all_classes(config):
    values = load([config])
    stages = alone(values.augment)
    assert list(stages) == ["mix=mixup", "gain_db=10.0"]
    _, columns, sounds = first_batch(values, 3, stages)
    y = sounds["before"].y
    assert len(y) == 8 and set(y[columns].tolist()) == set(y.tolist())
    gain = (sounds["gain_db=10.0"].seen - sounds["before"].seen)[:, 16, 20]
    assert gain.unique().numel() == 8 and gain.abs().max() <= 10.01
    assert sounds["mix=mixup"].y.shape == (8, 3)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--", "--augment.gain_db=0", "--augment.mix=none"], "turns no augmentation on"),
        (["--samples=0"], "--samples=0: at least 1"),
        (["--sample=3"], "did you mean samples"),
        (["more.yaml"], "more.yaml; settings are --section.key=value"),
    ],
)
def test_bad_words_are_one_line(config, tmp_path, capsys, words, message):
    assert main(["show_augment", config, *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
