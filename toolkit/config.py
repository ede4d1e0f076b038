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

PROTOCOLS = ("split", "kfold", "kfold_nested")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    name: str  #: the run's folder below `dir`
    dir: str = "runs"  #: where runs live


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    shards: str | list[Any]  #: a folder, or s3://, https://, hf://; or [{path: A, weight: 2}, ...]
    cache_gb: float = 50.0  #: 10^9 bytes of shards from an address that are kept on this machine
    protocol: str = "split"  #: split | kfold | kfold_nested
    fold: int = 0  #: which fold tests, counted from 0; k-fold protocols only
    classes: list[str] | None = None  #: only these, numbered in this order; null: all
    fraction: float = 1.0  #: of the training part's recordings, class by class; 0.1 is inside 0.2
    shuffle: str = "full"  #: full | window (of shards) | none
    window: int = 8  #: shards that samples are shuffled among; shuffle: window
    balance: str = "none"  #: none | class: each class is drawn equally often
    weights: dict[str, float] | str | None = None  #: {class: times}, or an .npy: one a sample
    samples_per_epoch: int | None = None  #: null: as many as the training part has
    last_batch: str = "wrap"  #: wrap | drop: the rule for an epoch's incomplete last batch
    threads: int = 2  #: that read ahead, a process
    check: bool = True  #: hold every payload that is read against its checksum
    resident: str = "auto"  #: auto | device | memory | none: where samples stay once they were read
    normalize: str = "band"  #: band | global: by the training part's statistics; sample; none
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
    lr: float = 1e-3  #: peak learning rate of AdamW
    weight_decay: float = 0.05  #: decoupled; not on norms and biases
    warmup_epochs: float = 1.0  #: epochs of linear warmup, then cosine to 0
    grad_clip: float = 1.0  #: largest gradient norm; 0 is off
    label_smoothing: float = 0.0  #: of the cross entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    time_masks: int = 0  #: SpecAugment masks along time
    time_width: int = 60  #: widest time mask, frames
    freq_masks: int = 0  #: SpecAugment masks along frequency
    freq_width: int = 25  #: widest frequency mask, mel bands
    mask_db: float = -80.0  #: what masked cells are set to, dB
    time_roll: int = (
        0  #: furthest circular shift either way, frames; from half of them on: anywhere
    )
    time_shift: int = 0  #: furthest shift either way, a random crop of the padded sample, frames
    shift_padding: str = "silence"  #: silence (-100 dB) | reflect
    mix: str = "none"  #: none | mixup | between_class: with another of the batch, added in power
    mix_share: float = 1.0  #: share of the samples that are mixed
    mix_alpha: float = 1.0  #: the ratio is drawn from Beta(alpha, alpha); 1: uniform
    gain_db: float = 0.0  #: largest gain either way, dB
    eq_db: float = 0.0  #: largest gain of a band either way, dB: FilterAugment
    eq_kind: str = "linear"  #: linear | step: between the bands
    eq_bands: int = 5  #: most bands; drawn from 2 up
    eq_width: int = 6  #: narrowest band, mel bands
    noise_db: float = 0.0  #: Gaussian noise on each cell: a sample's largest standard deviation, dB
    cutouts: int = 0  #: rectangles that are set to the sample's mean
    cutout_bands: int = 16  #: tallest, mel bands
    cutout_frames: int = 0  #: longest, frames; 0: the whole segment


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    epochs: int = 30  #: passes over the training part
    batch_size: int = 32  #: global: samples per optimiser step over all processes
    microbatch: int | None = None  #: largest forward on one device; null: the whole share
    precision: str = "auto"  #: no | bf16 | fp16 | auto (what `accelerate launch` says)
    seed: int = 42  #: of weights, order, dropout and augmentation
    best_metric: str = (
        "macro_f1"  #: of the validation part: macro_f1 | accuracy | balanced_accuracy | loss
    )
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
    "data.normalize": ("band", "global", "sample", "none"),
    "augment.mix": ("none", "mixup", "between_class"),
    "augment.shift_padding": ("silence", "reflect"),
    "augment.eq_kind": ("linear", "step"),
    "data.shuffle": ("full", "window", "none"),
    "data.balance": ("none", "class"),
    "data.resident": ("auto", "device", "memory", "none"),
    "train.precision": ("no", "bf16", "fp16", "auto"),
    "train.best_metric": ("macro_f1", "accuracy", "balanced_accuracy", "loss"),
    "train.resume": ("auto", "never", "must"),
}
AT_LEAST = {
    "data.fold": 0, "data.cache_gb": 0, "data.threads": 1, "data.fraction": 0, "data.window": 1,
    "data.samples_per_epoch": 1,
    "model.norm_batch": 1, "model.dropout": 0, "optim.lr": 0,
    "optim.weight_decay": 0, "optim.warmup_epochs": 0, "optim.grad_clip": 0,
    "optim.label_smoothing": 0, "augment.time_masks": 0, "augment.time_width": 0,
    "augment.freq_masks": 0, "augment.freq_width": 0, "augment.time_roll": 0,
    "augment.time_shift": 0, "augment.mix_share": 0, "augment.mix_alpha": 0.01,
    "augment.gain_db": 0, "augment.eq_db": 0, "augment.eq_bands": 2, "augment.eq_width": 1,
    "augment.noise_db": 0, "augment.cutouts": 0, "augment.cutout_bands": 0,
    "augment.cutout_frames": 0, "train.epochs": 1, "train.batch_size": 1,
    "train.microbatch": 1, "train.log_every": 1, "train.save_every": 0, "train.keep_last": 1,
    "train.max_steps": 1, "train.threads": 1,
}  # fmt: skip
AT_MOST = {"data.fraction": 1}


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
    for name, maximum in AT_MOST.items():
        if get(config, name) > maximum:
            raise UserError(f"{name}={get(config, name)}: at most {maximum}")
    for name, choices in CHOICES.items():
        if get(config, name) not in choices:
            raise UserError(f"{name}={get(config, name)}: one of {', '.join(choices)}")
    if config.augment.mix_share > 1:
        raise UserError(f"augment.mix_share={config.augment.mix_share}: at most 1, all samples")
    if config.augment.mix != "none" and config.model.norm_batch < 2:
        raise UserError(
            f"augment.mix={config.augment.mix} mixes within groups of model.norm_batch=1 sample; "
            "raise model.norm_batch to 2 or more"
        )
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
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = get_args(hint) if union else (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        base = get_origin(kind) or kind
        if base is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)  # a run named 2024
        if base is str and value is False:
            return "no"  # YAML 1.1 reads a bare `no` as false, and precision: no is a word here
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
