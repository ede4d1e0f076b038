"""Every config that ships: its head says what it should, and it trains on made-up audio."""

import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest
from processes import ROOT, forked

from shards.build import build
from shards.errors import UserError
from shards.sources.demo import find, synthesize
from toolkit.config import load
from toolkit.cost import input_of, measure

pytestmark = pytest.mark.usefixtures("no_pictures")

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SETTINGS = ("sample_rate", "n_mels", "n_fft", "hop_length", "fmin", "fmax", "segment_seconds")
KINDS = {
    "deepfake": {"per_class": 12, "words": {}},
    "genre": {"per_class": 4, "words": {"split": "0.5,0.25,0.25"}},
    "drone": {"per_class": 4, "words": {"split": "0.5,0.25,0.25"}},
    "environment": {"per_class": 5, "words": {"folds": 3, "group_from": "site-[0-9]"}},
}
#: Models of any size on 32 x 32 cells; what the config asks of its set is another test's.
SMALL = (
    "--train.max_steps=2", "--train.batch_size=4", "--model.norm_batch=4", "--train.threads=1",
    *(f"--data.{name}=null" for name in SETTINGS),
)  # fmt: skip
#: What a head has to say of a result, and of what it cost.
FIGURES = (r"n = \d seed", r"95 %\s+interval", r"protocol\s+\w+"), ("core", r"commit\s+[0-9a-f]{7}")


def head(file: Path) -> str:
    """The comment that a config opens with."""
    found = re.match(r"(#.*\n)+", file.read_text())
    assert found, file
    return re.sub("^# ?", "", found[0], flags=re.MULTILINE)


def commands(file: Path, start: str) -> list[list[str]]:
    """The words of each command that a config's head shows."""
    found = [line.partition(start)[2] for line in head(file).splitlines() if start in line]
    return [shlex.split(words) for words in found]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small shard set of each kind of demo."""
    root = tmp_path_factory.mktemp("sets")
    for kind, asked in KINDS.items():
        synthesize(root / "audio" / kind, 0, asked["per_class"], kind=kind, seconds=1)
        table = root / "audio" / kind / "manifest.csv"
        build(
            str(table if table.exists() else table.parent), str(root / kind), sample_rate=16000,
            segment_seconds=1, n_mels=32, workers=1, **asked["words"],
        )  # fmt: skip
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_two_steps_on_the_demo_set_of_its_kind(file, sets, tmp_path):
    kind = file.stem.partition("_")[0]
    config = load([str(file)])
    other = "drone" if config.data.protocol == "split" else "environment"
    words = [f"--data.shards={sets.get(kind, sets[other])}", f"--run.dir={tmp_path}", *SMALL]
    if config.data.crops:
        words += ["--data.crops=2", f"--augment.crop_frames={min(config.augment.crop_frames, 32)}"]
    code, said = forked(str(file), *words)
    assert code == 0, said[-2000:]
    assert len(list(tmp_path.rglob("best.safetensors"))) == 1
    assert len(list(tmp_path.rglob("confusion_matrix.png"))) == 1


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_head_builds_what_the_config_asks_for(file):
    config = load([str(file)])
    data = config.data
    assert config.run.name == file.stem
    for audio, out, *words in commands(file, "python -m shards build "):
        flags = dict(word.removeprefix("--").split("=", 1) for word in words)
        if out != data.shards:
            continue  # another set for other settings
        for name in SETTINGS:
            asked = getattr(data, name)
            assert name not in flags or asked is None or float(flags[name]) == asked, name
        assert {"sample_rate", "n_mels", "segment_seconds"} <= flags.keys()
        has_folds = {"folds", "fold_from"} & flags.keys()
        assert bool(has_folds) == (data.protocol != "split"), audio
    assert data.sample_rate and data.n_mels and data.n_fft and data.segment_seconds


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("deepfake", "deepfake_cnn_small_balanced"),
        ("drone", "drone_cnn_tiny"),
        ("environment", "demo"),
        ("genre", "genre_cnn"),
    ],
)
def test_what_demo_says_to_build_is_what_a_recipe_takes(kind, name):
    taken, told = inspect.signature(build).parameters, find(kind).BUILD.format(seconds=30)
    words = [word.removeprefix("--").split("=", 1) for word in shlex.split(told)]
    found = {key: taken[key].default for key in SETTINGS} | dict(words)
    asked = load([str(ROOT / f"configs/{name}.yaml")]).data
    for key in SETTINGS:
        value = getattr(asked, key)
        at = 8000 if (kind, key) == ("deepfake", "fmax") else found[key]  # half the sample rate
        assert value is None or float(at) == value, key


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_head_gives_commands_result_and_cost(file):
    shown, _, words = head(file).partition("\n\n")
    assert re.search(rf"^(python|accelerate launch) .*configs/{file.name}", shown, re.MULTILINE)
    assert "python -m shards build " in shown or file.stem == "demo"
    result, _, cost = f"\n{words}".partition("\nResult")[2].partition("\nCost: ")
    if result.startswith(": not measured"):
        config = load([str(file)])
        shape, n_classes, _ = input_of(config)
        model = measure(config.model, n_classes, shape)
        counted = f"{model.parameters / 1e6:.1f} M parameters, {model.flops / 1e9:.2f} GFLOPs"
        assert counted in cost
        return
    for text, needed in zip((result, cost), FIGURES, strict=True):
        assert not [what for what in needed if not re.search(what, text)], text


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_config_replaces_keys_of_its_base(tmp_path):
    (tmp_path / "in").mkdir()
    written(
        tmp_path, "b.yaml",
        "run: {name: b}\ndata: {shards: s, weights: {a: 1}}\nmodel: {name: crnn, dim: 64}\n",
    )  # fmt: skip
    words = "base: ../b.yaml\nrun: {name: d}\ndata: {weights: {c: 2}}\nmodel: {dim: 32}\n"
    config = load([written(tmp_path / "in", "d.yaml", words), "--model.dropout=0.1"])
    assert (config.run.name, config.data.shards, config.data.weights) == ("d", "s", {"c": 2.0})
    assert (config.model.name, config.model.dim, config.model.dropout) == ("crnn", 32, 0.1)


def test_a_base_is_one_file_that_is_there(tmp_path):
    written(tmp_path, "a.yaml", "run: {name: a}\nmodel: {name: crnn}\n")
    written(tmp_path, "b.yaml", "base: a.yaml\n")
    with pytest.raises(UserError, match=r"base b\.yaml has a base, too; name a\.yaml"):
        load([written(tmp_path, "c.yaml", "base: b.yaml\n")])
    with pytest.raises(UserError, match="No such file"):
        load([written(tmp_path, "d.yaml", "base: nowhere.yaml\n")])
    with pytest.raises(UserError, match="expected the path of a config"):
        load([written(tmp_path, "e.yaml", "base: {a: 1}\n")])


def test_rows_of_the_esc10_table_are_settings_of_its_config():
    rows = runpy.run_path(str(ROOT / "bench" / "esc10.py"))
    whole = load([str(rows["CONFIG"])])
    changed = [load([str(rows["CONFIG"]), *words]) for words in rows["ROWS"].values() if words]
    assert len(changed) > 5 and whole not in changed
    folders = [rows["folder_of"](Path("runs"), row, 42).name for row in rows["ROWS"]]
    assert folders[0] == "esc10_cnn_vgg_s42" and len(set(folders)) == len(folders)
