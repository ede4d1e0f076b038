"""Command lines on a shard set at an address."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import hashes
from servers import Site, folder_pages, serving

from shards import remote
from shards.__main__ import main
from shards.build import build
from shards.errors import UserError
from shards.index import open_set
from shards.read import Reader
from shards.seal import seal


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, and little patience."""
    monkeypatch.setenv("WAVEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    return tmp_path / "cache"


def test_commands_take_an_address(tone_set, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(Site(folder_pages(tone_set))) as site:
        for words in (["verify", site.url], ["info", site.url], ["show", site.url],
                      ["duplicates", site.url], ["bench", site.url, "--seconds=0.02"]):  # fmt: skip
            assert main(words) == 0
        said = capsys.readouterr().out
    assert f"verified: 54 samples in {len(open_set(tone_set).info['shards'])} shards" in said
    assert f"shard set   {site.url}" in said
    assert "| shuffled, in memory |" in said and "0 exact and 0 near" in said
    assert (tmp_path / "show.png").exists()


@pytest.mark.parametrize("name", ["samples-000001.tar", "index.npy", "dataset.json"])
def test_verify_tells_a_wrong_byte_behind_an_address(tone_set, tmp_path, capsys, name) -> None:
    bad = shutil.copytree(tone_set, tmp_path / "bad")
    data = bytearray((bad / name).read_bytes())
    data[-2000 if name == "samples-000001.tar" else len(data) // 2] ^= 1
    (bad / name).write_bytes(data)
    with serving(Site(folder_pages(bad))) as site, pytest.raises(SystemExit, match="1"):
        main(["verify", site.url])
    assert name in capsys.readouterr().out
    assert hashes(tone_set) != hashes(bad)


def test_a_damaged_dataset_json_is_not_opened(tone_set) -> None:
    data = (tone_set / "dataset.json").read_bytes()
    info = json.loads(data)
    for bad, told in (
        (data.replace(b'"seed": 0', b'"seed": 1', 1), "its own SHA-256 differs"),
        (data[:100], "not valid JSON"),
        (seal(info | {"format": 99}), "format 99"),
    ):
        site = Site(lambda path, bad=bad: (200, {}, bad) if "dataset" in path else None)
        with serving(site), pytest.raises(UserError, match=told):
            open_set(site.url)


def samples(path: object) -> np.ndarray:
    with Reader(found := open_set(str(path))) as reader:
        return reader.read(np.arange(len(found)))


def test_a_set_that_is_not_to_be_had_is_told_with_a_way_out(tmp_path, capsys) -> None:
    with serving(Site(folder_pages(tmp_path))) as site:
        for command in ("info", "verify"):
            assert main([command, site.url]) == 2
            assert "; check the address, or build a set there" in capsys.readouterr().err
    assert main(["info", site.url]) == 2
    assert "(tried 6 times); check the address, or try again later" in capsys.readouterr().err


@pytest.mark.parametrize("login", ["Bearer x", "Basic bWU6cGFzcw=="])
def test_a_login_goes_with_every_request(tone_set, tmp_path, monkeypatch, login) -> None:
    """A token out of FSSPEC_HTTP, a name and a password out of ~/.netrc."""
    pages = folder_pages(tone_set)
    site = Site(lambda path: pages(path) if login == site.headers[-1].get("Authorization") else no)
    no = 401, {}, b""
    with serving(site):
        with pytest.raises(UserError, match=r"dataset\.json: no access; log in"):
            open_set(site.url)
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pass\n")
        if login.startswith("Basic"):
            monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        else:
            monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": login}})
        assert np.array_equal(samples(site.url), samples(tone_set))
        for secret in ("me:pass@", "pass@", "me:p@ss@"):
            url = site.url.replace("//", f"//{secret}")
            with pytest.raises(UserError, match=r"^http://\*\*\*@127.*netrc"):
                open_set(url)
            with pytest.raises(UserError, match=r"^http://\*\*\*@127.*: cannot be written to"):
                build(str(tmp_path), url)
        with pytest.raises(UserError, match="no query") as error:
            open_set(f"{site.url}?sign=pass")
        assert "pass" not in str(error.value)
