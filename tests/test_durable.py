"""Files that are there whole or not at all, also after a power cut."""

import os
from pathlib import Path

import pytest
import torch

from shards.durable import write_atomic, write_output
from toolkit import checkpoint

TENSORS = {"w": torch.arange(6.0)}
WRITERS = {
    "bytes": lambda folder: write_atomic(folder / "file", b"content"),
    "output": lambda folder: write_output(folder / "new" / "file", b"content"),
    "tensors": lambda folder: checkpoint.write_tensors(folder / "file.safetensors", TENSORS, 7),
    "copy": lambda folder: checkpoint.copy(Path(__file__), folder / "file"),
    "checkpoint": lambda folder: checkpoint.write(folder, 7, {"model": TENSORS}, "{}"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_name_is_given_to_what_is_on_the_disk_and_is_on_the_disk_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    synced: dict[int, tuple[int, int]] = {}
    waiting: set[int] = set()
    named, replace = [], os.replace

    def look(place: "os.stat_result") -> tuple[int, tuple[int, int]]:
        return place.st_ino, (place.st_size, place.st_mtime_ns)

    def fsync(descriptor: int) -> None:
        inode, content = look(os.fstat(descriptor))
        synced[inode] = content
        waiting.discard(inode)

    def checked(old: Path, new: Path) -> None:
        for path in (Path(old), *Path(old).rglob("*")):
            inode, content = look(path.stat())
            assert synced.get(inode) == content, f"{path.name} may be empty after a power cut"
        replace(old, new)
        named.append(new)
        waiting.add(Path(new).parent.stat().st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", checked)
    WRITERS[name](tmp_path)
    assert named and not waiting
