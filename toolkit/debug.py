"""The same training as a debugger likes it: `train.py CONFIG --debug`."""

import dataclasses
import os
from typing import Any

from shards.errors import UserError
from toolkit.limits import check
from toolkit.schema import Config
from toolkit.world import launched

EPOCHS, STEPS = 2, 2  #: at most, and steps of each

#: What is set whatever the config says; a key that this version does not have is left alone.
SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"resume": "never", "timeout": 0.0, "log_every": 1, "compile": "off"},
    "data": {"threads": 1, "resident": "none"},
    "track": {"wandb": "disabled", "tensorboard": False},
    "hub": {"repo": None},
}


def at_the_desk(config: Config) -> Config:
    """A short run of one process beside the configured one, with nothing between user and error.

    Has torch say which forward a NaN of the backward comes from, and CUDA stop where it fails.

    Raises:
        UserError: a launcher has started several processes.
    """
    if launched()[1] > 1:
        raise UserError("--debug is for one process; start it by python train.py CONFIG --debug")
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch
    from tqdm import tqdm

    torch.autograd.set_detect_anomaly(True)
    tqdm.monitor_interval = 0  # its thread draws over the debugger's prompt
    train, data = config.train, config.data
    settings = {section: dict(keys) for section, keys in SETTINGS.items()}
    settings["run"] = {"name": f"{config.run.name}-debug"}
    settings["train"]["epochs"] = min(train.epochs, EPOCHS)
    samples = STEPS * train.batch_size
    settings["data"]["samples_per_epoch"] = min(data.samples_per_epoch or samples, samples)
    found = {
        section: changed(getattr(config, section), keys)
        for section, keys in settings.items()
        if hasattr(config, section)
    }
    config = dataclasses.replace(config, **found)
    check(config)
    return config


def changed(section: Any, keys: dict[str, Any]) -> Any:
    """A section with those of `keys` that it has."""
    known = {field.name for field in dataclasses.fields(section)}
    return dataclasses.replace(section, **{k: v for k, v in keys.items() if k in known})
