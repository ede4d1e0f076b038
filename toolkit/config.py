"""A config read and checked, strictly; YAML < --section.key=value."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from shards.command import nearest
from shards.errors import UserError
from toolkit.limits import CHOICES, check
from toolkit.schema import Config, ModelConfig

#: Keys that are there for every model, whatever it makes of them.
GENERAL = {"name", "norm_batch", "init_from", "freeze", "outputs"}


def load(words: Sequence[str]) -> Config:
    """A configuration from the command line: CONFIG.yaml, then any `--section.key=value`.

    Raises:
        UserError: no file, an unknown section or key (names the nearest), a wrong kind of value.
    """
    files = [word for word in words if not word.startswith("--")]
    if len(files) != 1:
        raise UserError(
            f"expected one CONFIG.yaml, got {len(files)}: train.py CONFIG [--section.key=value ...]"
        )
    values = read_yaml(Path(files[0]))
    for word in words:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            section, dot, key = name.partition(".")
            if not (equals and dot):
                raise UserError(f"{word}: expected --section.key=value, as in --optim.lr=3e-4")
            values.setdefault(section, {})[key] = typed(text)
    return parse(values)


def typed(text: str) -> Any:
    """A word of the command line as YAML reads it, where ` #` begins no comment."""
    plain = " #" in text and text[0] not in "'\"[{"
    return text if plain else yaml.safe_load(text)


def read_yaml(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of a config, over those of its `base`: another config, by a relative path.

    Keys of a section are replaced one by one. A base has no base: what holds is read in two files.
    """
    values = read_sections(file)
    if "base" not in values:
        return values
    name = values.pop("base")
    if not isinstance(name, str):
        raise UserError(f"{file}: base: {name!r}; expected the path of a config, from this one's")
    below = read_sections(file.parent / name)
    if "base" in below:
        raise UserError(f"{file}: its base {name} has a base, too; name {below['base']} or neither")
    return {s: below.get(s, {}) | values.get(s, {}) for s in (below | values)}


def read_sections(file: Path) -> dict[str, Any]:
    """The sections of a YAML file, and `base` if it has one."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; give the path of a config, configs/ has some"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(
        isinstance(keys, dict) for section, keys in values.items() if section != "base"
    ):
        raise UserError(f"{file}: expected sections of keys, as in `train: {{epochs: 30}}`")
    return values


def parse(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """Sections of plain values as a checked Config."""
    hints = get_type_hints(Config)
    for section in values:
        if section not in hints:
            raise UserError(
                f"unknown section {section!r} in the config; {nearest(section, list(hints))}"
            )
    sections = {
        name: parse_section(name, hint, values.get(name, {})) for name, hint in hints.items()
    }
    config = Config(**sections)
    check(config)
    return config


def parse_section(section: str, kind: type, values: Mapping[str, Any]) -> Any:
    """One section of plain values as its dataclass."""
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UserError(
                f"unknown key {section}.{key} in the config; {nearest(key, list(hints))}"
            )
    for f in dataclasses.fields(kind):
        if f.default is dataclasses.MISSING and f.name not in values:
            raise UserError(
                f"the config lacks {section}.{f.name}; add it, or --{section}.{f.name}=..."
            )
    return kind(
        **{key: cast(f"{section}.{key}", hints[key], value) for key, value in values.items()}
    )


def cast(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type of the field, where that loses nothing: 3 is a float, 3.5 no int."""
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = get_args(hint) if union else (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        base = get_origin(kind) or kind
        if base is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)  # a run named 2024
        if base is str and value is False:
            # YAML 1.1 reads a bare `no` or `off` as false, and precision: no is a word here.
            return "off" if "off" in CHOICES.get(name, ()) else "no"
        if base is float and not isinstance(value, bool):
            try:
                return float(value)  # YAML 1.1 reads 3e-4 as a string
            except (TypeError, ValueError):
                continue
        if isinstance(value, base) and not (base is int and isinstance(value, bool)):
            return cast_inside(name, kind, value)
    expected = [WORDS[get_origin(kind) or kind] for kind in kinds if kind is not type(None)]
    raise UserError(f"{name}={value!r}: expected {' or '.join(expected)}")


WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a word",
    list: "a list", dict: "a mapping",
}  # fmt: skip


def cast_inside(name: str, kind: Any, value: Any) -> Any:
    """The values in a list or a mapping as their types; any other value as it is."""
    inner = get_args(kind)
    if isinstance(value, list) and inner != (Any,):
        return [cast(name, inner[0], one) for one in value]
    if isinstance(value, dict):
        return {cast(name, inner[0], k): cast(f"{name}.{k}", inner[1], v) for k, v in value.items()}
    return value


def chosen(config: ModelConfig, make: Callable[..., Any]) -> dict[str, Any]:
    """The settings in `config` that are not at their defaults, which `make` has to know."""
    defaults = ModelConfig(name=config.name)
    names = {f.name for f in dataclasses.fields(ModelConfig)} - GENERAL
    known = sorted(names & signature(make).parameters.keys())
    found = {}
    for name in sorted(names):
        value = getattr(config, name)
        if value == getattr(defaults, name):
            continue
        if name not in known:
            raise UserError(
                f"model.{name}={value}: {config.name} has no such setting; "
                f"it has {', '.join(known)}"
            )
        found[name] = value
    return found
