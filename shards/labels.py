"""Labels: one class, or several as in `dog;rain`, and the numbers that stand for them.

Shapes: `L` different labels, `K` classes.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

SEPARATOR = ";"


def nfc(text: str) -> str:
    """Text as it compares: macOS and Linux spell an accented name in different bytes."""
    return unicodedata.normalize("NFC", text)


def natural(text: str) -> tuple[list[str | int], str]:
    """A sort key under which "2" comes before "10"."""
    pieces = re.split(r"(\d+)", nfc(text))
    return [int(p) if n % 2 else p for n, p in enumerate(pieces)], text


def names(label: str) -> tuple[str, ...]:
    """The classes that a label names, each once; none if there is nothing between its `;`."""
    if SEPARATOR not in label:
        return (label,)
    return tuple(dict.fromkeys(name for part in label.split(SEPARATOR) if (name := part.strip())))


def classes_of(labels: Iterable[str]) -> list[str]:
    """The classes of all labels, sorted as people count."""
    return sorted({name for label in set(labels) for name in names(label)}, key=natural)


def label_sets(labels: Iterable[str], classes: Sequence[str]) -> list[list[int]]:
    """The different sets of class numbers, sorted: `[[0], [1], ...]` where labels are single."""
    number = {name: n for n, name in enumerate(classes)}
    return sorted(map(list, {tuple(numbers(label, number)) for label in set(labels)}))


def numbers(label: str, number: Mapping[str, int]) -> list[int]:
    """The class numbers of a label, ascending."""
    return sorted(number[name] for name in names(label))


def shorten(text: str, length: int) -> str:
    """`text` with its middle left out if it is longer than `length`, and fit to be drawn."""
    text = text.encode("utf-8", "replace").decode()  # a name that is no UTF-8 stops no picture
    tail = length // 2
    return text if len(text) <= length else f"{text[: length - tail - 1]}…{text[-tail:]}"


def display_name(label: str) -> str:
    """A label as people read it: `001 - Dog bark` is `Dog bark`."""
    return re.sub(r"^\d+\s*-\s*(?=\S)", "", label)


def display_names(labels: Sequence[str]) -> list[str]:
    """Labels as people read them, or as they are if two would read the same."""
    names = [display_name(label) for label in labels]
    return names if len(set(names)) == len(names) else list(labels)
