"""What the documents show is there: commands, and in docs/from_scripts.md five older systems."""

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import ROOT

from launch.local import local
from launch.tasks import plan
from shards import __main__ as shards_line
from shards.build import build
from shards.command import bind
from toolkit import __main__ as toolkit_line
from toolkit.config import load
from toolkit.models import REGISTRY
from toolkit.schema import Config

PAGE = (ROOT / "docs/from_scripts.md").read_text()
#: What each of the older systems did.
CELLS = {
    "Deepfake CNN trainer": (
        "16 kHz", "n_fft 2048", "hop 512", "128 mels", "0-8,000 Hz", "LUFS -23", "8 s", "0.5",
        "4 s", "0.75", "2 time masks <= 60", "2 frequency masks <= 25", "-80 dB", "random crop",
        "Adam", "cross entropy", "batch 32 (16, 8)", "best by validation F1", "loss", "accuracy",
        "ROC AUC", "confusion matrix Real / Fake", "audio-deepfake-detection", "seed 42", "EER",
        "DET", "min-DCF", "per attack",
    ),
    "Deepfake ViT trainer": ("8 s, 0.5", "10 s, 0", "ViTs"),
    "k-fold environmental-sound trainer": (
        "official or made folds", "Adam", "cross entropy", "ReduceLROnPlateau on validation loss",
        "early stopping with patience", "best of the fold", "per-epoch `.safetensors`",
        "fold_X/epoch_Y.safetensors", "resume at fold and epoch", "mean and std over folds",
        "all histories",
    ),
    "Genre classifier": (
        "22,050 Hz", "30 s", "128 x 1292", "rock/ jazz/", "50 epochs", "patience 5, factor 0.5",
        "early stopping (15)", "validation split 0.15", "44.1 kHz, 60 s, 256 mels",
    ),
    "Drone / car / speech classifier": (
        "any classes", "2 s chunks", "noise + time masking", "overfit check first",
        "report and confusion matrix", "batch 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("system", CELLS)
def test_every_word_has_its_place(system):
    section = PAGE.partition(f"## {system}\n")[2].partition("\n## ")[0]
    missing = [word for word in CELLS[system] if word not in section]
    assert not missing


def test_the_keys_and_models_that_it_names_exist():
    sections = Config.__dataclass_fields__
    config = load([str(ROOT / "configs/demo.yaml")])
    names = re.findall(rf"\b({'|'.join(sections)})\.(?!html|txt)([a-z_]+)\b(?!\.md|\()", PAGE)
    assert len(names) > 20
    for section, key in names:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
    for name in re.findall(r"model\.name: (\w+)", PAGE):
        assert name in REGISTRY or name == "forest"


def test_the_flags_that_it_names_exist():
    commands = (build, shards_line.demo, local)
    known = {name for command in commands for name in inspect.signature(command).parameters}
    flags = set(re.findall(r"--([a-z_]+)\b(?!\.)", PAGE))
    assert len(flags) > 12 and flags <= known, flags - known


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("deepfake_cnn_medium_performance", {"segment_seconds": 4, "fmax": 8000, "n_mels": 128}),
        ("deepfake_vit_large_performance", {"segment_seconds": 10, "n_fft": 2048}),
        ("deepfake_vit_small_balanced", {"segment_seconds": 8, "hop_length": 512}),
        ("genre_crnn", {"segment_seconds": 30, "sample_rate": 22050}),
        ("drone_cnn_tiny", {"segment_seconds": 2}),
    ],
)
def test_settings_reach_the_configs_that_have_a_base(name, asked):
    config = load([str(ROOT / f"configs/{name}.yaml")])
    assert {key: getattr(config.data, key) for key in asked} == asked
    if name.startswith("deepfake"):
        size = {"small": 32, "medium": 16, "large": 8}[name.split("_")[2]]
        assert config.train.batch_size == size and config.train.seed == 42
        assert config.track.project == "audio-deepfake-detection"
        a = config.augment
        assert (a.time_masks, a.time_width, a.freq_masks, a.freq_width) == (2, 60, 2, 25)
        assert a.mask_db == -80


LINES = {"shards": shards_line.COMMANDS, "toolkit": toolkit_line.COMMANDS}
PAGES = [file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
HEADS = [file.read_text().partition("\nrun:")[0] for file in (ROOT / "configs").glob("*.yaml")]


def shown(start: str) -> list[list[str]]:
    """The words after `start` of each command in the README's blocks and the heads of configs."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page, re.S)]
    lines = [line.partition("  #")[0] for text in blocks for line in text.splitlines()]
    lines += [line.lstrip("# ") for text in HEADS for line in text.splitlines()]
    found = [line.partition(start)[2].partition(";")[0] for line in lines if start in line]
    return [shlex.split(words) for words in found]


@pytest.fixture
def at(tmp_path: Path) -> Callable[[str], str]:
    """Where a config lies: in the project, unless a page says how to write it."""
    for page in PAGES:
        for file, text in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", page, re.S | re.M):
            (tmp_path / file).write_text(text)
    return lambda file: str(next(f for f in (tmp_path / file, ROOT / file) if f.exists()))


@pytest.mark.parametrize("package", LINES)
def test_command_lines(package):
    commands = shown(f"python -m {package} ")
    made = {"demo", "download", "convert", "build", "merge"}
    shown_of_shards = made | {"verify", "info", "show", "duplicates", "reset"}
    expected = {
        "shards": shown_of_shards,
        "toolkit": {"collect", "compare", "show_augment", "lr_find", "models"},
    }
    assert {name for name, *_ in commands} == expected[package]
    for name, *words in commands:
        bind(name, LINES[package][name], words)  # raises on a flag that is not there


def test_trainings(at):
    commands = shown("train.py ")
    assert len(commands) >= 4
    for file, *words in commands:
        settings = [word.replace("$f", "0") for word in words if word != "--debug"]
        load([at(file), *settings])


def test_trainings_side_by_side(at):
    commands = shown("python -m launch.local ")
    assert len(commands) >= 4
    for words in commands:
        (config, *settings), flags = bind("launch.local", local, words)
        asked = {name: flags.get(name) for name in ("folds", "seeds")}
        assert plan([at(config), *settings], **asked, grid=flags.get("grid", ()))


def test_how_fast_are_figures_that_the_command_beside_them_printed():
    results = (ROOT / "bench/RESULTS.md").read_text()
    table = PAGES[0].partition("## How fast\n")[2].partition("\n## ")[0]
    rows = re.findall(r"\| ([\d.]+x) \| (\d+) \| `(python bench/.+)` \|", table)
    assert len(rows) == table.count("python bench/") > 3
    for times, n, command in rows:
        section = results.partition(f"\n`{command}")[2].partition("\n<!-- /")[0]
        assert f" | {times} | " in section and f"n = {n} interleaved" in section, command
