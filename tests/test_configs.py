"""Every config that ships trains a step on a made-up shard set of the shape it states."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from processes import ROOT, train

from shards.build import build
from toolkit.config import load

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def noise_folder(folder: Path, rate: int, seconds: float) -> Path:
    """Two classes of six noises, each a group of its own."""
    generator = np.random.default_rng(0)
    for label in ("hiss", "hum"):
        (folder / label).mkdir(parents=True)
        for i in range(6):
            wave = 0.1 * generator.normal(size=int(rate * seconds))
            soundfile.write(folder / label / f"{i}.wav", wave, rate)
    return folder


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_step(file, tmp_path):
    data = load([str(file)]).data
    assert None not in (
        data.sample_rate,
        data.n_mels,
        data.n_fft,
        data.hop_length,
        data.segment_seconds,
    )
    audio = noise_folder(tmp_path / "audio", data.sample_rate, data.segment_seconds)
    build(
        str(audio), str(tmp_path / "set"), sample_rate=data.sample_rate, n_mels=data.n_mels,
        n_fft=data.n_fft, hop_length=data.hop_length, segment_seconds=data.segment_seconds,
        folds=3, workers=1,
    )  # fmt: skip
    result = train(
        1,
        str(file),
        f"--data.shards={tmp_path / 'set'}",
        f"--run.dir={tmp_path / 'runs'}",
        "--train.max_steps=1",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list((tmp_path / "runs").rglob("best.safetensors"))) == 1
