"""The schema of a run: strict and frozen; YAML < --section.key=value."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from shards.command import nearest
from shards.errors import UserError
from toolkit.metrics import SIGNS

PROTOCOLS = ("split", "kfold", "kfold_nested")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    name: str  #: the run's folder below `dir`
    dir: str = "runs"  #: where runs live


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    shards: str  #: folder of the shard set
    protocol: str = "split"  #: split | kfold | kfold_nested
    fold: int = 0  #: which fold tests, counted from 0; k-fold protocols only
    last_batch: str = "wrap"  #: wrap | drop: the rule for an epoch's incomplete last batch
    normalize: str = "band"  #: band | global | none: standardise by the training part's statistics
    sample_rate: int | None = None  #: Hz; where given, the shard set must have it; so those below
    n_mels: int | None = None  #: bands
    n_fft: int | None = None  #: samples
    hop_length: int | None = None  #: samples
    fmin: float | None = None  #: Hz
    fmax: float | None = None  #: Hz
    segment_seconds: float | None = None  #: seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    name: str  #: a name of toolkit.models.REGISTRY
    norm_batch: int = 16  #: samples of the global batch that share batch norm statistics
    dropout: float = 0.0  #: before the classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    name: str = "adamw"  #: adamw | adam | sgd (with Nesterov's momentum)
    lr: float = 1e-3  #: peak learning rate
    weight_decay: float = 0.05  #: decoupled in adamw, else L2; none on norms, biases, embeddings
    beta1: float = 0.9  #: adamw, adam: decay of the mean of gradients
    beta2: float = 0.999  #: adamw, adam: decay of the mean of their squares
    momentum: float = 0.9  #: sgd
    schedule: str = "cosine"  #: constant | cosine | linear | onecycle | plateau
    warmup_epochs: float = 1.0  #: epochs of linear warmup; onecycle has its own rise instead
    end_factor: float = 0.0  #: where cosine, linear, onecycle end, and plateau's floor; times lr
    start_factor: float = 0.04  #: where onecycle begins, times lr
    pct_start: float = 0.3  #: share of all steps in which onecycle rises
    plateau_metric: str = "loss"  #: of the validation part; any that train.best_metric takes
    plateau_factor: float = 0.1  #: what the rate is multiplied by when the metric stands still
    plateau_patience: int = 10  #: evaluations without a better value that are borne
    plateau_threshold: float = 1e-4  #: what counts as better, relative
    plateau_cooldown: int = 0  #: evaluations after a drop that are not counted
    ema: float = 0.0  #: decay of the averaged weights that are scored and saved; 0: off
    grad_clip: float = 1.0  #: largest gradient norm; 0 is off
    label_smoothing: float = 0.0  #: of the cross entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    time_masks: int = 0  #: SpecAugment masks along time
    time_width: int = 60  #: widest time mask, frames
    freq_masks: int = 0  #: SpecAugment masks along frequency
    freq_width: int = 25  #: widest frequency mask, mel bands
    mask_db: float = -80.0  #: what masked cells are set to, dB


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    epochs: int = 30  #: passes over the training part
    batch_size: int = 32  #: global: samples per optimiser step over all processes
    microbatch: int | None = None  #: largest forward on one device; null: the whole share
    precision: str = "auto"  #: no | bf16 | fp16 | auto (what `accelerate launch` says)
    seed: int = 42  #: of weights, order, dropout and augmentation
    #: of the validation part: macro_f1 | accuracy | balanced_accuracy | loss | roc_auc |
    #: average_precision | ece | eer (two classes); chooses the epoch
    best_metric: str = "macro_f1"
    patience: int = 0  #: evaluations without a better best_metric that end the training; 0: off
    log_every: int = 10  #: steps between lines of metrics.jsonl
    save_every: int = 0  #: steps between checkpoints; 0: at the end of each epoch
    keep_last: int = 1  #: checkpoints to keep
    max_steps: int | None = None  #: stop after so many steps, evaluate and report: a dry run
    resume: str = "auto"  #: auto | never (start over) | must
    threads: int | None = None  #: CPU threads a process; null: the cores it may use, shared out


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One experiment. Only the loop sees all of it; everything below takes its own part."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def folder(self) -> Path:
        """Where this run, or this fold of it, lives."""
        run = Path(self.run.dir) / self.run.name
        return run if self.data.protocol == "split" else run / f"fold-{self.data.fold}"

    def to_dict(self) -> dict[str, Any]:
        """Sections of plain values, as YAML and JSON hold them."""
        return dataclasses.asdict(self)


CHOICES = {
    "data.protocol": PROTOCOLS,
    "data.last_batch": ("wrap", "drop"),
    "data.normalize": ("band", "global", "none"),
    "train.precision": ("no", "bf16", "fp16", "auto"),
    "train.best_metric": tuple(SIGNS),
    "optim.name": ("adamw", "adam", "sgd"),
    "optim.schedule": ("constant", "cosine", "linear", "onecycle", "plateau"),
    "optim.plateau_metric": tuple(SIGNS),
    "train.resume": ("auto", "never", "must"),
}
AT_LEAST = {
    "data.fold": 0, "model.norm_batch": 1, "model.dropout": 0, "optim.lr": 0,
    "optim.weight_decay": 0, "optim.warmup_epochs": 0, "optim.grad_clip": 0,
    "optim.label_smoothing": 0, "augment.time_masks": 0, "augment.time_width": 0,
    "augment.freq_masks": 0, "augment.freq_width": 0, "train.epochs": 1, "train.batch_size": 1,
    "train.microbatch": 1, "train.log_every": 1, "train.save_every": 0, "train.keep_last": 1,
    "train.max_steps": 1, "train.threads": 1, "train.patience": 0, "optim.end_factor": 0,
    "optim.start_factor": 0, "optim.plateau_patience": 0, "optim.plateau_threshold": 0,
    "optim.plateau_cooldown": 0,
}  # fmt: skip
BELOW_ONE = (
    "optim.beta1", "optim.beta2", "optim.momentum", "optim.pct_start", "optim.plateau_factor",
    "optim.ema",
)  # fmt: skip


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
            values.setdefault(section, {})[key] = yaml.safe_load(text) if text else None
    return parse(values)


def read_yaml(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; give the path of a config, configs/ has some"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
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
    for name, minimum in AT_LEAST.items():
        value = get(config, name)
        if value is not None and value < minimum:
            raise UserError(f"{name}={value}: at least {minimum}")
    for name in BELOW_ONE:
        if not 0 <= get(config, name) < 1:
            raise UserError(f"{name}={get(config, name)}: at least 0 and below 1")
    for name, choices in CHOICES.items():
        if get(config, name) not in choices:
            raise UserError(f"{name}={get(config, name)}: one of {', '.join(choices)}")
    return config


def get(config: Config, name: str) -> Any:
    """The value of `section.key`."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


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
    optional = get_origin(hint) in (Union, types.UnionType)
    kind = next(k for k in get_args(hint) if k is not type(None)) if optional else hint
    if value is None and optional:
        return None
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a run named 2024
    if kind is str and value is False:
        return "no"  # YAML 1.1 reads a bare `no` as false, and precision: no is a word here
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 3e-4 as a string
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[
        kind
    ]
    raise UserError(f"{name}={value!r}: expected {expected}")
