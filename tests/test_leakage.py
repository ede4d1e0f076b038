"""Nothing of the test part reaches the training: other audio and labels there, the same bits."""

import json
from pathlib import Path

import pytest
from conftest import SETTINGS, write_tone
from processes import forked
from runs import config_file

from shards.build import build

pytestmark = pytest.mark.usefixtures("no_pictures")

PARTS = ("test", "val", "train", "train")  #: of the folds 0 to 3: each protocol tests on fold 0
HERTZ = {"high": 2000.0, "low": 440.0}
OTHER = {"high": "low", "low": "high"}


def built(folder: Path, other: bool) -> Path:
    """Four folds of two classes, six recordings each; those of fold 0 as noise, and the one class
    for the other, if that is asked."""
    rows = ["path,label,fold,split"]
    for fold, part in enumerate(PARTS):
        for n in range(12):
            label = list(HERTZ)[n % 3 > 0]  # not balanced: weights of classes have to be learned
            name, changed = f"audio/{fold}-{n}.wav", other and fold == 0
            write_tone(folder / name, None if changed else HERTZ[label], seed=20 * fold + n)
            rows.append(f"{name},{OTHER[label] if changed else label},{fold},{part}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    words = {name: value for name, value in SETTINGS.items() if name != "group_from"}
    build(str(folder / "t.csv"), str(folder / "set"), workers=1, **words)
    return folder / "set"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return [built(tmp_path_factory.mktemp("leakage"), other) for other in (False, True)]


def left(run: Path) -> dict[str, bytes]:
    """The weights that are scored, those of the end, and what inference takes beside them."""
    files = [run / "best.safetensors", run / "model.json", *run.glob("checkpoints/*/*.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


PROTOCOLS = ("split", "kfold", "kfold_nested", "kfold_optimistic")


@pytest.mark.parametrize(
    ("protocol", "model"),
    [*((protocol, "cnn_tiny") for protocol in PROTOCOLS), ("kfold_nested", "forest")],
)
def test_the_test_part_decides_nothing(sets, tmp_path, protocol, model):
    validates = protocol != "kfold"
    decides = {"schedule": "plateau" if validates else "cosine", "plateau_patience": 0}
    network = {
        "model": {"name": model, "norm_batch": 4},
        "optim": {"lr": 3e-3, "ema": 0.5, "class_weights": "balanced", **decides},
        "augment": {"gain_db": 3, "mix": "between_class", "time_roll": 9},
        "train": {"epochs": 5, "best_metric": "loss", "patience": 3 * validates, "keep_last": 1},
    }
    trees = {"model": {"name": model, "trees": 5}}
    found, scored = [], []
    for n, shards in enumerate(sets):
        words = trees if model == "forest" else network
        data = {"protocol": protocol, "balance": "class"}
        config = config_file(tmp_path, shards, "", run={"name": f"r{n}"}, data=data, **words)
        code, said = forked(config)
        assert code == 0, said
        run = tmp_path / f"r{n}" / ("" if protocol == "split" else "fold-0")
        found.append(left(run))
        scored.append(json.loads((run / "scores.json").read_text())["segment"]["loss"])
    assert scored[0] != scored[1]  # the test part is another
    assert (found[0] == found[1]) == (protocol != "kfold_optimistic")
