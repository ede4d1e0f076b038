"""A config read and checked, strictly; YAML < --section.key=value."""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import getsource, signature
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from shards.command import nearest
from shards.errors import UserError
from toolkit.limits import check
from toolkit.schema import Config, ModelConfig

#: Keys that are there for every model, whatever it makes of them.
GENERAL = {"name", "norm_batch", "norm_steps", "init_from", "freeze", "outputs"}


class AsTyped(yaml.SafeLoader):
    """Scalars as they were typed, but for null: `cast` knows what they are. YAML 1.1 by itself has
    1.1 for a run named 1.10, False for a class named off, a date for 2026-01-31."""


AsTyped.yaml_implicit_resolvers = {
    first: [one for one in found if one[0].endswith((":null", ":merge"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(words: Sequence[str]) -> Config:
    """A configuration from the command line: CONFIG.yaml, then any `--section.key=value`.

    Raises:
        UserError: no file, an unknown section or key (names the nearest), a wrong kind of value.
    """
    files = [word for word in words if not word.startswith("--")]
    if len(files) != 1:
        raise UserError(
            f"expected one CONFIG.yaml, got {' '.join(files) or 'none'}; "
            "settings are --section.key=value"
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


def usage() -> str:
    """What `train.py --help` prints: every key as the schema has it, with its default."""
    lines = ["accelerate launch train.py CONFIG.yaml [--section.key=value ...] [--debug]"]
    for section, kind in get_type_hints(Config).items():
        fields = (line.strip() for line in getsource(kind).splitlines()[2:])
        lines += ["", *(line if line[:1] in "#" else f"{section}.{line}" for line in fields)]
    return "\n".join(lines)


def typed(text: str) -> Any:
    """A word of the command line as YAML reads it, or if it is none, or ` #` is in it, as it is."""
    plain = " #" in text and text[0] not in "'\"[{"
    try:
        return text if plain else yaml.load(text, AsTyped)
    except yaml.YAMLError:
        return text


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
        values = read_words(file)
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; give the path of a config, configs/ has some"
        ) from None
    if not isinstance(values, dict) or not all(
        isinstance(keys, dict) for section, keys in values.items() if section != "base"
    ):
        raise UserError(f"{file}: expected sections of keys, as in `train: {{epochs: 30}}`")
    return values


def read_words(file: Path) -> Any:
    """A YAML file, its scalars as they were typed; a UserError where it is none."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), AsTyped)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None


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
    """`value`, a word or what it stands for, as the type of the field: 3 is a float, 3.5 no int."""
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = get_args(hint) if union else (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        base = get_origin(kind) or kind
        if isinstance(value, base) and not (base is int and isinstance(value, bool)):
            found = cast_inside(name, kind, value)
        elif base in READ and not isinstance(value, bool):
            found = READ[base](value)
        else:
            continue
        if found is not None and (base is not float or math.isfinite(found)):
            return found
    expected = [WORDS[get_origin(kind) or kind] for kind in kinds if kind is not type(None)]
    raise UserError(f"{name}={value}: expected {' or '.join(expected)}")


def number(kind: type, value: Any) -> Any:
    """A value as a number of this kind; None if it is none."""
    try:
        return kind(str(value))
    except ValueError:
        return None


SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
#: How a word is read where something else is asked for; None: it is no such thing.
READ: dict[type, Callable[[Any], Any]] = {
    int: partial(number, int),
    float: partial(number, float),
    bool: lambda value: SWITCHES.get(str(value).lower()),
}
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
