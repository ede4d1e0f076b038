"""What values the keys of a config may have."""

from pathlib import Path

from shards.errors import UserError
from toolkit.metrics import SIGNS
from toolkit.schema import Config, TrainConfig, get

CHOICES = {
    "data.protocol": ("split", "kfold", "kfold_nested", "kfold_optimistic"),
    "data.last_batch": ("wrap", "drop"),
    "data.normalize": ("band", "global", "sample", "peak", "none"),
    "augment.mix": ("none", "mixup", "between_class"),
    "augment.shift_padding": ("silence", "reflect"),
    "augment.eq_kind": ("linear", "step"),
    "data.shuffle": ("full", "window", "none"),
    "data.balance": ("none", "class"),
    "data.resident": ("auto", "device", "memory", "none"),
    "train.precision": ("no", "bf16", "fp16", "auto"),
    "train.compile": ("off", "default", "reduce-overhead"),
    "train.channels_last": (True, False, "auto"),
    "train.best_metric": tuple(SIGNS),
    "model.outputs": (None, 1),
    "optim.loss": ("auto", "cross_entropy", "focal", "bce"),
    "optim.name": ("adamw", "adam", "sgd"),
    "optim.schedule": ("constant", "cosine", "linear", "onecycle", "plateau"),
    "optim.plateau_metric": tuple(SIGNS),
    "train.resume": ("auto", "never", "must"),
    "report.threshold": ("macro_f1", "accuracy", "balanced_accuracy", "eer", "none"),
    "track.wandb": ("disabled", "offline", "online"),
}
MOST = 2**31 - 1  #: of any number that is not in AT_MOST; the least of one not in AT_LEAST is 0
AT_LEAST_ONE = (
    "data.threads", "data.window", "data.samples_per_epoch", "data.top_db", "augment.time_scale",
    "augment.eq_width", "model.norm_batch", "model.dim", "model.depth", "model.heads",
    "model.mlp_dim", "model.trees", "model.leaf", "train.epochs", "train.batch_size",
    "train.microbatch", "train.log_every", "train.keep_last", "train.max_steps", "train.threads",
)  # fmt: skip
AT_LEAST: dict[str, float] = {
    **dict.fromkeys(AT_LEAST_ONE, 1), "augment.mix_alpha": 0.01, "augment.eq_bands": 2,
    "augment.mask_db": -200,
}  # fmt: skip
AT_MOST = {"data.fraction": 1, "augment.mix_share": 1, "report.dcf_prior": 1}
AT_MOST |= {"train.seed": 2**32 - 1, "train.batch_size": 2**24}
AT_MOST |= {"train.threads": 1024, "data.threads": 1024}
BELOW_ONE = (
    "model.dropout", "model.embed_dropout", "model.patch_dropout", "model.drop_path",
    "optim.beta1", "optim.beta2", "optim.momentum", "optim.pct_start", "optim.plateau_factor",
    "optim.ema", "optim.label_smoothing",
)  # fmt: skip


def check(config: Config) -> None:
    """Raise a UserError for a value out of its range, or two that exclude each other."""
    for name in BELOW_ONE:
        if not 0 <= get(config, name) < 1:
            raise UserError(f"{name}={get(config, name)}: at least 0 and below 1")
    for name, choices in CHOICES.items():
        if get(config, name) not in choices:
            words = ", ".join(str(choice).lower() for choice in choices)
            raise UserError(f"{name}={get(config, name)}: one of {words}")
    for section, keys in config.to_dict().items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            least, most = AT_LEAST.get(name, 0), AT_MOST.get(name, MOST)
            if isinstance(value, int | float) and not least <= value <= most:
                words = f"least {least}" if value < least else f"most {most}"
                raise UserError(f"{name}={value}: at {words}")
    for name, value, there in (
        ("run.name", config.run.name or ".", "run.dir, which says where runs live"),
        ("run.part", config.run.part, "the run's, as seed-1"),
    ):
        path = Path(value)
        if path.is_absolute() or ".." in path.parts or (value and not path.parts):
            raise UserError(f"{name}={value}: a folder below {there}")
    timeout, waits = config.train.timeout, config.hub.timeout
    if config.hub.repo is not None and 0 < timeout <= waits:
        raise UserError(
            f"hub.timeout={waits:g}: so long a training's end may wait for the Hub, and "
            f"train.timeout={timeout:g} would end it before; lower the one or raise the other"
        )
    if config.augment.mix != "none" and config.model.norm_batch < 2:
        raise UserError(
            f"augment.mix={config.augment.mix} mixes within groups of model.norm_batch=1 sample; "
            "raise model.norm_batch to 2 or more"
        )
    if config.train.exact:
        check_exact(config.train, config.model.norm_batch)


def check_exact(train: TrainConfig, group: int) -> None:
    """Raise a UserError unless every launch can compute the global batch in the same forwards."""
    for name, what in (("microbatch", "samples of a forward"), ("threads", "threads a process")):
        if getattr(train, name) is None:
            raise UserError(f"train.exact=true needs train.{name}: {what}, the same on any launch")
    halves = [train.batch_size >> n for n in range(train.batch_size.bit_length())]
    fitting = [m for n, m in enumerate(halves) if m << n == train.batch_size and m % group == 0]
    if train.microbatch not in fitting:
        fit = ", ".join(map(str, fitting)) or f"none, batch norm takes model.norm_batch={group}"
        raise UserError(
            f"train.exact=true takes a power of two of microbatches, train.batch_size="
            f"{train.batch_size} is none of train.microbatch={train.microbatch}; those that fit: "
            f"{fit}"
        )
