"""The same training as a debugger likes it: `train.py CONFIG --debug`."""

import os
from dataclasses import replace

from shards.errors import UserError
from toolkit.limits import check
from toolkit.schema import Config
from toolkit.world import launched

EPOCHS, STEPS = 2, 2  #: at most, and steps of each


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
    train, data, samples = config.train, config.data, STEPS * config.train.batch_size
    few = min(data.samples_per_epoch or samples, samples)
    config = replace(
        config,
        run=replace(config.run, name=f"{config.run.name}-debug"),
        data=replace(data, threads=1, resident="none", samples_per_epoch=few),
        train=replace(
            train, epochs=min(train.epochs, EPOCHS), resume="never", timeout=0.0, log_every=1,
            compile="off",
        ),
        track=replace(config.track, wandb="disabled", tensorboard=False),
        hub=replace(config.hub, repo=None),  # where the real run's epochs have the same names
    )  # fmt: skip
    check(config)
    return config
