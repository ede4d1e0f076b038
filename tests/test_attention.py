"""The picture of what a crnn attends to, at the end of a training."""

import io

import matplotlib.image
import numpy as np
import pytest
import yaml
from processes import forked

from toolkit.attention import draw
from toolkit.figures import to_png


def orange_rows(png: bytes) -> np.ndarray:
    """The rows of a picture that have the colour of a caution, as shares of its height."""
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    orange = np.abs(pixels - [0xD9 / 255, 0x73 / 255, 0x0D / 255]).max(-1) < 0.02
    return np.flatnonzero(orange.any(1)) / len(pixels)


@pytest.mark.parametrize(
    ("model", "picture"),
    [({"name": "crnn", "norm_batch": 8, "filters": [4, 4, 4], "dim": 4}, "attention"),
     ({"name": "forest"}, "importance")],
)  # fmt: skip
def test_every_table_and_picture_of_an_optimistic_run_says_so(model, picture, tone_set, tmp_path):
    values = {
        "run": {"name": "r", "dir": str(tmp_path)},
        "data": {"shards": str(tone_set), "protocol": "kfold_optimistic"},
        "model": model,
        "train": {"max_steps": 2, "batch_size": 16, "threads": 1, "precision": "no"},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    code, told = forked(str(tmp_path / "a.yaml"))
    assert code == 0, told
    fold = tmp_path / "r/fold-0"
    found = {file.stem: orange_rows(file.read_bytes()) for file in fold.glob("*.png")}
    assert set(found) == {"confusion_matrix", "curves", picture}
    assert all(len(rows) and rows.min() < 0.1 for rows in found.values()), found
    assert (fold / "report.txt").read_text().count("the epoch was chosen on the reported fold") == 2


def test_attention_stands_below_its_frames():
    attention = np.zeros((1, 4), np.float32)
    attention[0, 3] = 1.0
    png = to_png(draw(np.zeros((1, 8, 32), np.float32), attention, ["a"]))
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    orange = np.abs(pixels - [0xD9 / 255, 0x73 / 255, 0x0D / 255]).max(-1) < 0.02
    assert orange.any() and np.flatnonzero(orange.any(0)).min() > 0.7 * pixels.shape[1]
