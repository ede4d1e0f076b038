"""What a finished shard leaves in `.build` until the end: its index rows, recordings, sums.

Shapes: `n` samples of the shard, `M` mel bands.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.index import write_atomic
from shards.recording import Reject

Cell = tuple[int, int, int]  # split, fold, class


@dataclass(frozen=True)
class Notes:
    """A shard as the final files will tell of it; the recordings in its rows count from 0."""

    rows: np.ndarray  # (n,) of index.ROW
    lines: list[str]  # of recordings.jsonl
    rejected: list[Reject]
    sums: dict[Cell, np.ndarray]  # (3, M) float64: count, sum, sum of squares
    size: int  # bytes of the tar
    sha256: str
    grains: np.ndarray | None = None  # (n, G, B), see shards.fingerprint; not saved

    @property
    def recordings(self) -> list[dict[str, Any]]:
        """What the lines say."""
        found: list[dict[str, Any]] = json.loads(f"[{','.join(self.lines)}]")
        return found


def save(notes: Notes, file: Path) -> None:
    """Write notes to `file`, whole or not at all."""
    text = {
        "rejected": notes.rejected,
        "size": notes.size,
        "sha256": notes.sha256,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        rows=notes.rows,
        cells=np.array(list(notes.sums), np.int64),
        sums=np.array(list(notes.sums.values())),
        lines=np.frombuffer("\n".join(notes.lines).encode(), np.uint8),
        text=np.frombuffer(json.dumps(text).encode(), np.uint8),
    )
    write_atomic(file, buffer.getvalue())


def load(file: Path) -> Notes:
    """The notes that `save` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        text = json.loads(arrays["text"].tobytes())
        cells = (tuple(cell) for cell in arrays["cells"].tolist())
        return Notes(
            rows=arrays["rows"],
            lines=arrays["lines"].tobytes().decode().splitlines(),
            rejected=[Reject(*reject) for reject in text["rejected"]],
            sums=dict(zip(cells, arrays["sums"], strict=True)),
            size=text["size"],
            sha256=text["sha256"],
        )
