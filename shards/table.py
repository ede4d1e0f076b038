"""Recordings named by a file: CSV, TSV, JSON-lines, or a protocol of words between spaces."""

import csv
import io
import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any

from shards.errors import UserError
from shards.labels import SEPARATOR, nfc
from shards.remote import FetchError, Url, is_url, read_bytes
from shards.root import Root, as_root, below, listing

#: A list of words for each column, "path" among them; an empty word is no value.
Table = dict[str, list[str]]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
#: ASVspoof 2019; the keys of 2021's LA and DF, told by how many words a line has.
PROTOCOLS = (
    "speaker,file,codec,attack,label",
    "speaker,file,codec,channel,attack,label,trim,subset",
    "speaker,file,codec,source,attack,label,trim,subset,vocoder,_,_,_,_",
)
BY_NAME = ("label", "group", "attack", "fold", "split")
KNOWN = ("path", *BY_NAME, "start", "end")


def locate(audio: str, audio_root: str | None) -> tuple[Root, Root | None]:
    """The folder that paths are relative to, and the table that names them, if AUDIO is one.

    An address is a table if it ends like one (.txt: a protocol), and else a folder.

    Raises:
        UserError: one of them is not there.
    """
    place = as_root(audio)
    root = place.parent if audio_root is None else as_root(audio_root)
    if isinstance(place, Url):
        is_folder = place.suffix.lower() not in (*DELIMITERS, *JSON_LINES, ".txt")
    elif place.exists():
        is_folder = place.is_dir()
    else:
        raise UserError(f"{audio}: no such folder or table; give one folder a class, or a CSV file")
    if is_folder and audio_root is not None:
        raise UserError(f"--audio_root={audio_root}: for tables only, and {audio} is a folder")
    if isinstance(root, Path) and not root.is_dir():
        raise UserError(f"--audio_root={audio_root}: no such folder")
    return (place, None) if is_folder else (root, place)


def read_table(
    file: Root, path_from: str | None = None, protocol_columns: str | None = None
) -> Table:
    """The columns of a table that have anything in them; "path" is the one that `path_from` names.

    `.csv` and `.tsv` begin with a line of names, `.jsonl` has an object a line, any other file is
    a protocol: words between spaces, named by `protocol_columns` or as ASVspoof has them, where
    `file` is "path".

    Raises:
        UserError: not such a file, a line of another length, no paths, no rows.
    """
    try:
        with opened(file) as lines:
            columns = read_columns(file, lines, protocol_columns)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: no text in UTF-8 ({error}); save a table so, or give the audio's folder"
        ) from None
    table = {name: words for name, words in columns.items() if any(words)}
    if not table:
        raise UserError(f"{file}: no rows in it")
    given = path_from or ("path" if "path" in table else "file")
    if given not in table:
        raise UserError(
            f"{file}: no column {path_from or 'path'!r}, there are {', '.join(table)}; name the "
            "one with the paths by --path_from"
        )
    table["path"] = [
        path if is_url(path) else posixpath.normpath(path.replace("\\", "/"))
        for path in table.pop(given)
    ]
    if "." in table["path"]:
        raise UserError(f"{file}: row {table['path'].index('.') + 1} names no path; fill it in")
    return table


def opened(file: Root) -> IO[str]:
    """A table as text."""
    if not isinstance(file, Url):
        return open(file, encoding="utf-8-sig", newline="")
    try:
        content = io.BytesIO(read_bytes(str(file)))
    except FetchError as error:
        raise UserError(str(error)) from None
    return io.TextIOWrapper(content, encoding="utf-8-sig", newline="")


def read_columns(file: Root, lines: Iterable[str], protocol_columns: str | None) -> Table:
    """Every column, by the kind of the file."""
    suffix = file.suffix.lower()
    if protocol_columns is None and suffix in JSON_LINES:
        return transposed_objects(file, lines)
    if protocol_columns is None and suffix in DELIMITERS:
        rows = csv.reader(lines, delimiter=DELIMITERS[suffix], strict=True)
        try:
            names = [column_name(name) for name in next(rows, [])]
            return transposed(file, names, (row for row in rows if row))
        except csv.Error as error:
            raise UserError(f"{file}: line {rows.line_num}: {error}; mend it") from None
    words = (some for line in lines if (some := line.split()))
    first = next(words, [])
    names = (protocol_columns or protocol_of(first)).replace(",", " ").split()
    return transposed(file, names, chain([first] if first else [], words))


def protocol_of(words: Sequence[str]) -> str:
    """The columns of the protocol that has so many of them, or of the oldest."""
    fitting = (names for names in PROTOCOLS if names.count(",") + 1 == len(words))
    return next(fitting, PROTOCOLS[0])


def transposed(file: Root, names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Columns from rows; equal words are kept once."""
    repeated = [name for name, count in Counter(names).items() if count > 1 and name not in "-_"]
    if repeated:
        raise UserError(f"{file}: two columns are named {repeated[0]!r}; rename one")
    columns: list[list[str]] = [[] for _ in names]
    known: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UserError(
                f"{file}: row {number} has {len(row)} columns, expected {len(names)} "
                f"({', '.join(names)}); mend it, or name the columns of a protocol by "
                "--protocol_columns"
            )
        for column, word in zip(columns, row, strict=True):
            word = word.strip()
            column.append(known.setdefault(word, word))
    return dict(zip(names, columns, strict=True))


def transposed_objects(file: Root, lines: Iterable[str]) -> Table:
    """Columns from a JSON object a line; a list of labels is joined, what is absent is empty."""
    columns: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for number, line in enumerate(line for line in lines if line.strip()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{file}: row {number + 1} is no JSON object; mend it")
        row = {column_name(name): value for name, value in row.items()}
        for name in row.keys() - columns.keys():
            columns[name] = [""] * number
        for name, column in columns.items():
            word = json_word(row.get(name))
            column.append(known.setdefault(word, word))
    return columns


def column_name(text: str) -> str:
    """A column as flags name it: as it stands, but `Path` is `path`."""
    name = text.strip()
    return name.lower() if name.lower() in KNOWN else name


def json_word(value: Any) -> str:
    """A JSON value as the word that a CSV would have."""
    if isinstance(value, list):
        return SEPARATOR.join(map(json_word, value))
    return "" if value is None else str(value)


def own_columns(table: Table, words: Mapping[str, Any]) -> dict[str, str]:
    """The `*_from` flags that columns named label, group, attack, fold and split stand for.

    A flag that is given wins, and so do folds and parts that are asked for.
    """
    asked = {"fold": "folds", "split": "split"}
    return {
        f"{name}_from": name
        for name in BY_NAME
        if name in table
        and words[f"{name}_from"] is None
        and (name not in asked or words[asked[name]] is None)
    }


def resolve(
    paths: Sequence[str], root: Root, suffixes: Container[str]
) -> Iterator[tuple[str, str]]:
    """Each path as the file system spells it, below `root`, and why there is no such file, if so.

    A missing suffix is completed where exactly one audio file fits. What is behind an address that
    cannot be listed is taken to be there.
    """
    folders: dict[str, Folder] = {}
    for path in paths:
        path = below(root, path)
        if is_url(path):
            yield path, ""
            continue
        head, name = posixpath.split(path)
        if head not in folders:
            folders[head] = Folder(root / head, suffixes)
        fitting = folders[head].fitting(name)
        if isinstance(root, Url) and not folders[head].names:
            yield path, ""
        elif len(fitting) == 1:
            yield posixpath.join(head, fitting[0]), ""
        else:
            reason = f"fits {len(fitting)} files, such as {fitting[0]}" if fitting else "missing"
            yield path, f"{reason}; the table names it"


class Folder:
    """The names in a folder, read once: a million rows are no million look-ups."""

    def __init__(self, path: Root, suffixes: Container[str]) -> None:
        self.suffixes = suffixes
        self.names = {nfc(name): name for name in listing(path)}

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """The audio files of each stem, sorted."""
        stems = defaultdict(list)
        for name in sorted(self.names):
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() in self.suffixes:
                stems[stem].append(self.names[name])
        return stems

    def fitting(self, name: str) -> list[str]:
        """The file of this name, or the audio files that have it as their stem."""
        name = nfc(name)
        return [self.names[name]] if name in self.names else self.stems.get(name, [])
