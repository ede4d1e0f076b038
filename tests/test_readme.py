"""The commands that the README and the configs show are commands that exist."""

import re
import shlex

import pytest
from processes import ROOT

from launch.local import local
from launch.tasks import plan
from shards import __main__ as shards_line
from shards.command import bind
from toolkit import __main__ as toolkit_line
from toolkit.config import load

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


@pytest.mark.parametrize("package", LINES)
def test_command_lines(package):
    commands = shown(f"python -m {package} ")
    made = {"demo", "download", "convert", "build", "merge"}
    shown_of_shards = made | {"verify", "info", "show", "duplicates", "reset"}
    expected = {
        "shards": shown_of_shards,
        "toolkit": {"collect", "show_augment", "lr_find", "models"},
    }
    assert {name for name, *_ in commands} == expected[package]
    for name, *words in commands:
        bind(name, LINES[package][name], words)  # raises on a flag that is not there


def test_trainings():
    commands = shown("train.py ")
    assert len(commands) >= 4
    for file, *words in commands:
        settings = [word.replace("$f", "0") for word in words if word != "--debug"]
        load([str(ROOT / file), *settings])


def test_trainings_side_by_side():
    commands = shown("python -m launch.local ")
    assert len(commands) >= 4
    for words in commands:
        (config, *settings), flags = bind("launch.local", local, words)
        asked = {name: flags.get(name) for name in ("folds", "seeds")}
        assert plan([str(ROOT / config), *settings], **asked, grid=flags.get("grid", ()))
