"""A strict configuration: what is off is named, with the way out."""

import re
from pathlib import Path

import pytest

from shards.errors import UserError
from toolkit.config import load, parse

TEXT = """
run: {name: 2024}
data: {shards: set}
model: {name: cnn_tiny}
optim: {lr: 3e-4}
train: {precision: no, microbatch: null}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    return str(path)


def test_values_arrive_as_their_types(file):
    config = load(
        [file, "--train.epochs=7", "--optim.weight_decay=1e-2", "--data.sample_rate=16000"]
    )
    assert (config.run.name, config.optim.lr, config.train.precision) == ("2024", 3e-4, "no")
    assert (config.train.epochs, config.optim.weight_decay) == (7, 0.01)
    assert (config.data.sample_rate, config.train.microbatch) == (16000, None)
    assert parse(config.to_dict()) == config
    words = ["--train.compile=off", "--train.channels_last=auto", "--train.precision=no"]
    train = load([file, *words]).train
    assert (train.compile, train.channels_last, train.precision) == ("off", "auto", "no")
    assert load([file, "--train.channels_last=false"]).train.channels_last is False


@pytest.mark.parametrize("word", ["runs of 100% #1", "1.10", "007", "2026-01-31", "off", "1:30",
                                  "@x", "[a-z]+", '"x', "true"])  # fmt: skip
def test_a_word_stays_as_it_was_typed(file, tmp_path, word):
    """YAML 1.1 has numbers, dates and truths for many of them, and some are no YAML."""
    assert load([file, f"--run.dir={word}"]).run.dir == word
    if word != "[a-z]+":
        assert load([file, f"--data.classes=['{word}', b]"]).data.classes == [word, "b"]
    if re.match(r"[\w:-]+$", word):
        Path(file).write_text(
            TEXT.replace("2024", word) + f"optim: {{class_weights: {{{word}: 2}}}}"
        )
        config = load([file])
        assert (config.run.name, config.optim.class_weights) == (word, {word: 2.0})


def test_folders():
    base = {"run": {"name": "a"}, "data": {"shards": "s"}, "model": {"name": "m"}}
    assert parse(base).folder() == Path("runs/a")
    kfold = parse({**base, "data": {"shards": "s", "protocol": "kfold", "fold": 2}})
    assert kfold.folder() == Path("runs/a/fold-2")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--train.epoch=3"], "unknown key train.epoch .* did you mean epochs"),
        (["--trian.epochs=3"], "unknown section 'trian' .* did you mean train"),
        (["--train.epochs=3.5"], "train.epochs=3.5: expected a whole number"),
        (["--train.epochs=true"], "expected a whole number"),
        (["--train.epochs=0"], "train.epochs=0: at least 1"),
        (["--train.epochs=9999999999"], "train.epochs=9999999999: at most 2147483647"),
        (["--train.threads=9999"], "train.threads=9999: at most 1024"),
        (["--augment.mask_db=-1e300"], "mask_db=-1e.300: at least -200"),
        (["--hub.timeout=-1"], "hub.timeout=-1.0: at least 0"),
        (["--hub.repo=a/b", "--train.timeout=300"], "train.timeout=300 would end it"),
        (["--optim.lr=fast"], "optim.lr=fast: expected a number"),
        (["--data.protocol=kfolds"], "one of split, kfold, kfold_nested"),
        (["--train.compile=fast"], "compile=fast: one of off, default, reduce-overhead"),
        (["--train.channels_last=y"], "channels_last=y: one of true, false, auto"),
        (["--train.tf32=1"], "train.tf32=1: expected true or false"),
        (["--epochs=3"], "expected --section.key=value"),
        (["more.yaml"], "more.yaml; settings are --section.key=value"),
        (["--model.name="], "expected a word"),
        (["--train.seed=-1"], "train.seed=-1: at least 0"),
        (["--run.name=../b"], "run.name=../b: a folder below run.dir"),
        (["--run.name=''"], "run.name=.: a folder below run.dir"),
        (["--run.name=./"], "run.name=./: a folder below run.dir"),
        (["--run.part=/b"], "run.part=/b: a folder below the run's"),
        (["--optim.lr=nan"], "optim.lr=nan: expected a number"),
        (["--optim.label_smoothing=1"], "label_smoothing=1.0: at least 0 and below 1"),
        (["--train.batch_size=1000000000000"], "batch_size=1000000000000: at most 16777216"),
        (["--data.classes=[a"], "data.classes=.a: expected a list"),
    ],
)
def test_what_is_off_is_named(file, words, message):
    with pytest.raises(UserError, match=message) as error:
        load([file, *words])
    assert "\n" not in str(error.value)


def test_a_window_is_part_of_a_segment(file):
    config = load([file, "--augment.crop_frames=8"])
    assert config.input_shape((4, 8)) == config.input_shape((4, 9)) == (4, 8)
    with pytest.raises(UserError, match="crop_frames=8: a segment has 7; 0 takes all"):
        config.input_shape((4, 7))


def test_missing_file_and_key(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        load(["nowhere.yaml"])
    path = tmp_path / "b.yaml"
    path.write_text("run: {name: a}\ndata: {}\nmodel: {name: m}\n")
    with pytest.raises(UserError, match=r"lacks data.shards"):
        load([str(path)])
    path.write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load([str(path)])
