"""Old sets of spectrograms, as their users had them: tables beside arrays, and pickles."""

import csv
import pickle
from pathlib import Path

import numpy as np

M, T = 16, 20


CLASSES = ("dog", "rain")


def clip(label: int, seed: int, frames: int = T) -> np.ndarray:
    """(M, T) float32 dB, not below -80, its maximum 0; a class is a band."""
    noise = -60 + 5 * np.random.default_rng(seed).standard_normal((M, frames))
    noise[4 * label + 2] += 50
    return np.maximum(noise - noise.max(), -80).astype(np.float32)


def names(n: int = 12) -> list[tuple[str, int, str]]:
    """(name, label, part); each part has both classes."""
    parts = ("train", "train", "val", "test")
    return [(f"s{i // 8}-{i:02d}", i % 2, parts[i // 2 % 4]) for i in range(n)]


def table(file: Path, rows: list[dict[str, str]]) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def npy_set(folder: Path, scale: str = "db") -> Path:
    """metadata.csv and a folder of .npy; every other array is (1, M, T)."""
    rows = []
    for i, (name, label, part) in enumerate(names(16)):
        values = clip(label, i) if scale == "db" else 10 ** (clip(label, i) / 10)
        (folder / part).mkdir(parents=True, exist_ok=True)
        np.save(folder / part / f"{name}.npy", values[None] if i % 2 else values)
        rows.append({"filename": f"{name}.wav", "label": CLASSES[label], "split": part})
    table(folder / "metadata.csv", rows)
    return folder


def npz_set(folder: Path) -> Path:
    """train.csv, val.csv, test.csv and a folder of .npz."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "val": [], "test": []}
    (folder / "specs").mkdir(parents=True)
    for i, (name, label, part) in enumerate(names(16)):
        np.savez_compressed(folder / f"specs/{name}.npz", mel=clip(label, i), label=label)
        rows[part].append({"path": f"specs/{name}.npz", "class": CLASSES[label]})
    for part, part_rows in rows.items():
        table(folder / f"{part}.csv", part_rows)
    return folder


def pkl_set(folder: Path) -> Path:
    """metadata.csv and a folder of .pkl, half of them dicts that hold more than the array."""
    rows = []
    for i, (name, label, part) in enumerate(names(16)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        content = {"mel": clip(label, i), "label": label, "rate": 8000} if i % 2 else clip(label, i)
        (folder / part / f"{name}.pkl").write_bytes(pickle.dumps(content))
        rows.append({"filename": f"{name}.wav", "label": CLASSES[label], "split": part})
    table(folder / "metadata.csv", rows)
    return folder


def pickle_set(folder: Path, protocol: int = 4) -> Path:
    """features.pkl, labels.pkl, folds.pkl, class_mapping.pkl."""
    folder.mkdir()
    content = {
        "features": [clip(i % 2, i) for i in range(16)],
        "labels": np.arange(16) % 2,
        "folds": [i // 2 % 4 + 1 for i in range(16)],
        "class_mapping": {"dog": 0, "rain": np.int64(1)},
    }
    for name, value in content.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(value, protocol))
    return folder
