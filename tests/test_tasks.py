"""Folds x seeds x grid: what each task sets, and what its folder is called."""

import pytest

from launch.tasks import plan, tasks
from shards.errors import UserError
from toolkit.config import load

TEXT = "run: {name: r}\ndata: {shards: set, protocol: kfold}\nmodel: {name: cnn_tiny}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.parametrize(
    "folds, seeds, grid, names",
    [
        ("2", None, [], ["fold-0", "fold-1"]),
        ("0,2", None, [], ["fold-0", "fold-2"]),
        ("3,", None, [], ["fold-3"]),
        (None, None, [], [""]),
        (None, "2", [], ["seed-0", "seed-1"]),
        ("0,", "7,9", [], ["seed-7/fold-0", "seed-9/fold-0"]),
        ("1,", "1,", ["optim.lr=1e-3,3e-4", "model.name=crnn,timm:a/b"],
         [f"lr={lr},model={m}/seed-1/fold-1"
          for lr in ("1e-3", "3e-4") for m in ("crnn", "timm-a-b")]),
        (None, None, ["optim.lr=1e-3", "train.epochs=1,2"], ["epochs=1", "epochs=2"]),
        (None, None, ["optim.name=sgd,adam", "model.name=crnn,cnn_tiny"],
         [f"optim={o},model={m}" for o in ("sgd", "adam") for m in ("crnn", "cnn_tiny")]),
        (None, None, ["data.window=1,2", "model.window=3,4"],
         [f"data.window={a},model.window={b}" for a in (1, 2) for b in (3, 4)]),
        (None, None, ["model.pools=[1,2],[2,2]"], ["pools=1-2", "pools=2-2"]),
    ],
)  # fmt: skip
def test_names(folds, seeds, grid, names):
    assert [task.name for task in tasks(folds, seeds, grid)] == names


def test_words_lead_to_the_folder_and_the_settings(config, tmp_path):
    planned = plan([config, "--run.dir=x"], "2", "4,5", ["optim.lr=1e-3,3e-4"])
    assert len(planned) == 8
    task, found = planned[5]  # lr second, seed first, fold second
    assert (found.optim.lr, found.train.seed, found.data.fold) == (3e-4, 4, 1)
    assert load([config, "--run.dir=x", *task.words]) == found
    assert str(found.folder()) == f"x/r/{task.name}" == "x/r/lr=3e-4/seed-4/fold-1"


@pytest.mark.parametrize(
    "folds, seeds, grid, message",
    [
        ("five", None, [], "--folds=five: expected a count"),
        ("1,1", None, [], "each once"),
        ("0", None, [], "at least one"),
        ("2", "a,b", [], "--seeds=a,b"),
        ("2", None, ["lr=1"], "section.key=value"),
        ("2", None, ["optim.lr="], "section.key=value"),
        ("2", None, ["train.seed=1,2"], "train.seed is for --seeds"),
        ("2", None, ["optim.lr=1,2", "optim.lr=3"], "optim.lr is given twice"),
        ("2", None, ["optim.lr=1,1"], "share the folder lr=1/fold-0"),
        ("2", None, ["optim.lr=1e-3,0.001"], "lr=1e-3/fold-0 and lr=0.001/fold-0 are the same"),
        ("2", None, ["optim.rl=1,2"], "did you mean lr"),
        (None, None, [], "say which folds"),
    ],
)
def test_what_is_refused(config, folds, seeds, grid, message):
    with pytest.raises(UserError, match=message):
        plan([config], folds, seeds, grid)


def test_a_stored_split_has_no_folds(config):
    with pytest.raises(UserError, match="has no folds; leave --folds out"):
        plan([config, "--data.protocol=split"], "2", None)
    with pytest.raises(UserError, match=r"run.part=\.\./x: a folder below"):
        load([config, "--run.part=../x"])
