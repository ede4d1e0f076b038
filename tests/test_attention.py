"""The picture of what a crnn attends to, at the end of a training."""

import io

import matplotlib.image
import numpy as np
import yaml
from processes import on_ranks

from toolkit.attention import draw
from toolkit.config import load
from toolkit.figures import to_png
from toolkit.loop import fit


def test_a_training_leaves_the_picture(tone_set, tmp_path):
    values = {
        "run": {"name": "r", "dir": str(tmp_path)},
        "data": {"shards": str(tone_set), "protocol": "kfold"},
        "model": {"name": "crnn", "norm_batch": 4, "filters": [4, 4, 4], "dim": 4},
        "train": {"max_steps": 1, "batch_size": 8, "threads": 1, "precision": "no"},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    config = load([str(tmp_path / "a.yaml")])
    (result,) = on_ranks(1, lambda: fit(config))
    assert "recording" in result, result
    assert (tmp_path / "r/fold-0/attention.png").read_bytes().startswith(b"\x89PNG")


def test_attention_stands_below_its_frames():
    attention = np.zeros((1, 4), np.float32)
    attention[0, 3] = 1.0
    png = to_png(draw(np.zeros((1, 8, 32), np.float32), attention, ["a"]))
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    orange = np.abs(pixels - [0xD9 / 255, 0x73 / 255, 0x0D / 255]).max(-1) < 0.02
    assert orange.any() and np.flatnonzero(orange.any(0)).min() > 0.7 * pixels.shape[1]
