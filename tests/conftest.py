"""Audio made on the spot, and one small shard set that many tests read."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from surroundings import changes, surroundings

from shards.build import build

if shutil.which("nvidia-smi"):
    # The tests are of the processor, and fork, which CUDA survives only where nobody has asked for
    # it; test_cuda.py gives its children back what is hidden here.
    os.environ.setdefault("TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
else:
    # The first backward starts threads for every device, and no fork has any of them: now, when
    # there is no device, not once `toolkit models` has counted on one that is made up.
    torch.ones(1, requires_grad=True).sum().backward()
# What is started from here, the other processes of this run of tests too: compiles no module of
# ours twice, and OpenMP's threads do not take cores from each other as they wait.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nothing here is to outlive the machine, and disks take milliseconds to be sure.
os.fsync = os.fstat  # type: ignore[assignment]
GPUS = os.environ.get("TEST_GPUS", "")  #: that test_cuda.py may use

RATE = 8000
TONES: Mapping[str, float | None] = {"high": 2000.0, "low": 440.0, "noise": None}  # Hz; None: noise
PER_CLASS, PER_GROUP = 12, 2
BESIDE_TARS = {"index.npy", "stats.npy", "recordings.jsonl", "rejected.csv"}
BESIDE_TARS |= {"balance.json", "balance.png", "dataset.json"}
GROUP_FROM = r"^[a-z]+-g\d+"
SETTINGS = {
    "sample_rate": RATE,
    "segment_seconds": 1.0,
    "n_mels": 32,
    "n_fft": 512,
    "hop_length": 128,
    "group_from": GROUP_FROM,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests come first: all processes end at about the same time. Those of
    Slurm keep both cores busy, and so are never side by side."""
    weight: Counter[Path] = Counter()
    for item in items:
        slurm, slow = (item.get_closest_marker(name) is not None for name in ("slurm", "slow"))
        weight[item.path] += 1000 * slurm + slow
    files = sorted(weight, key=lambda file: -weight[file])
    for file in [file for file in files if weight[file] >= 1000][:-1]:  # the last one waits most
        files.remove(file)
        files.insert(len(files) // 2, file)
    items.sort(key=lambda item: files.index(item.path))


def write_tone(
    path: Path, hertz: float | None, *, seconds: float = 1.0, rate: int = RATE, seed: int = 0
) -> Path:
    """Write a tone 46 dB above a faint noise, or white noise for `hertz=None`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    n = round(seconds * rate)
    noise = random.standard_normal(n)
    time = np.arange(n) / rate
    wave = 0.1 * noise if hertz is None else 0.001 * noise
    if hertz is not None:
        wave = wave + 0.3 * np.sin(2 * np.pi * hertz * time + random.uniform(0, 2 * np.pi))
    soundfile.write(path, wave.astype(np.float32), rate)
    return path


def write_tones(
    folder: Path, per_class: int = PER_CLASS, tones: Mapping[str, float | None] = TONES
) -> Path:
    """A folder a class; `low-g2-5.wav` is recording 5 of class low, in group low-g2.

    Groups are pairs: a recording of 1 s, one segment, and a recording of 2 s, two segments.
    """
    for place, (label, hertz) in enumerate(tones.items()):
        for n in range(per_class):
            name = f"{label}-g{n // PER_GROUP}-{n}.wav"
            seconds = 1.0 + n % PER_GROUP
            write_tone(folder / label / name, hertz, seconds=seconds, seed=1000 * place + n)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fails a test after which environment, log levels, threads and the like are others."""
    before = surroundings()
    yield
    assert not changes(before), "a test leaves behind what it changed"


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """A training ends with five pictures, which take longer than one of a few steps."""
    patch.setattr("toolkit.figures.rendered", lambda *words, **more: b"<svg></svg>")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn in a test."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audio folder that `tone_set` is built from; read it, do not change it."""
    return write_tones(tmp_path_factory.mktemp("tones") / "audio")


@pytest.fixture(scope="session")
def tone_set(tones: Path) -> Path:
    """A finished shard set: 3 classes, 36 recordings, 54 segments, 4 folds, 3 parts, 3 shards."""
    out = tones.parent / "set"
    build(
        str(tones),
        str(out),
        folds=4,
        split="0.6,0.2,0.2",
        workers=1,
        shard_size="100KB",
        **SETTINGS,
    )
    return out


def build_tones(audio: Path, out: Path, **words: Any) -> str:
    """A build with the settings of `tone_set`, or others by name."""
    defaults: dict[str, Any] = {"folds": 4, "workers": 1, "shard_size": "100KB"}
    return build(str(audio), str(out), **(defaults | SETTINGS | words))


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def read_plainly(folder: Path) -> list[dict[str, Any]]:
    """Every sample as webdataset reads it."""
    import webdataset

    urls = [str(tar) for tar in sorted(folder.glob("samples-*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode())


def lines(folder: Path) -> list[dict[str, Any]]:
    """What recordings.jsonl says."""
    return [json.loads(line) for line in (folder / "recordings.jsonl").read_text().splitlines()]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two classes of four recordings."""
    return write_tones(tmp_path / "audio", 4, {"high": 2000.0, "low": 440.0})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an S3 server on the loopback."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    importlib.import_module("boto3").client("s3").create_bucket(Bucket="bucket")
    importlib.import_module("s3fs").S3FileSystem.clear_instance_cache()
    yield "s3://bucket"
    importlib.import_module("s3fs").S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 240 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
