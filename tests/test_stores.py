"""Shard sets in a bucket and on the Hugging Face Hub: trained on as if they were here."""

import importlib
import json
from pathlib import Path

import pytest
from processes import forked
from runs import config_file
from servers import Page, Site, folder_pages, serving

from shards.durable import sha256


def hub(folder: Path):
    """The parts of the Hub's API by which the files of datasets/user/set are found and read."""
    files, base = folder_pages(folder), "/api/datasets/user/set"

    def pages(path: str) -> Page | None:
        path = path.partition("?")[0]
        if path in (base, f"{base}/revision/main"):
            about = {"id": "user/set", "sha": "1" * 40, "private": False, "siblings": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        if path.startswith(f"{base}/tree/main"):
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "2" * 40}
                for f in folder.iterdir()
                if f.is_file()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        name = path.removeprefix("/datasets/user/set/resolve/main")
        return None if name == path else files(name)

    return pages


@pytest.fixture
def hub_address(tone_set, monkeypatch):
    """`tone_set` in a repository, on a server that stands in for huggingface.co."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving(Site(hub(tone_set))) as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", site.url)
        template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the caller's is
        importlib.import_module("huggingface_hub").HfFileSystem.clear_instance_cache()
        yield "hf://datasets/user/set"
        importlib.import_module("huggingface_hub").HfFileSystem.clear_instance_cache()


@pytest.fixture
def bucket_address(tone_set, bucket):
    """`tone_set` in a bucket."""
    client = importlib.import_module("boto3").client("s3")
    for file in filter(Path.is_file, tone_set.iterdir()):
        client.upload_file(str(file), "bucket", f"a set/{file.name}")
    return f"{bucket}/a set"


@pytest.mark.parametrize("store", ["hub_address", "bucket_address"])
def test_trained_from_a_store_the_weights_are_those_from_a_disk(
    store, tone_set, tmp_path, monkeypatch, request, no_pictures
):
    address = request.getfixturevalue(store)
    monkeypatch.setenv("WAVEFOLD_CACHE", str(tmp_path / "cache"))
    config = config_file(tmp_path, tone_set, train={"max_steps": 6})
    for words in (["--run.name=here"], ["--run.name=there", f"--data.shards={address}"]):
        code, said = forked(config, *words)
        assert code == 0, said
    weights = [tmp_path / f"runs/{name}/fold-0/best.safetensors" for name in ("here", "there")]
    assert sha256(weights[0]) == sha256(weights[1])
    assert {file.name for file in (tmp_path / "cache").iterdir()} >= {
        shard["sha256"] for shard in json.loads((tone_set / "dataset.json").read_text())["shards"]
    }
