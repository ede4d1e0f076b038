"""What became of each link or file that was asked for: outcomes.csv, kept up as it goes."""

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from shards.durable import csv_bytes, write_atomic
from shards.errors import UserError
from shards.progress import with_progress

logger = logging.getLogger(__name__)

NAME = "outcomes.csv"


@dataclass
class Outcome:
    """A line of outcomes.csv. `file` is a path below OUT, empty while there is none."""

    link: str
    label: str = ""
    file: str = ""
    status: str = "waiting"  # "waiting", "done" or "failed"
    reason: str = ""


def read(out: Path) -> dict[str, Outcome]:
    """The outcomes of earlier starts by their links; none without a file of them.

    Raises:
        UserError: the file there is not one of ours.
    """
    try:
        with open(out / NAME, newline="", encoding="utf-8") as text:
            return {row["link"]: Outcome(**row) for row in csv.DictReader(text)}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(
            f"{out / NAME}: not a table of outcomes; move it away or give another place"
        ) from None


def write(out: Path, rows: Iterable[Outcome]) -> None:
    """Replace outcomes.csv."""
    names = [field.name for field in fields(Outcome)]
    write_atomic(out / NAME, csv_bytes([names, *map(astuple, rows)]))


def fetch_all(
    out: Path, rows: dict[str, Outcome], asked: Iterable[str], fetch: Callable[[Outcome], str]
) -> Counter[str]:
    """Have `fetch` bring what is asked for and not there yet; how often which thing happened.

    `fetch` returns the new file's path below `out`, or raises a ValueError that tells why there is
    none: that costs this row only. Counts "there" (before), "done" and "failed".
    """
    counts: Counter[str] = Counter()
    links = list(asked)
    for link in with_progress(links, "download", len(links), "files"):
        row = rows[link]
        if row.status == "done" and (out / row.file).is_file():
            counts["there"] += 1
            continue
        try:
            row.file, row.status, row.reason = fetch(row), "done", ""
        except ValueError as error:
            row.file, row.status, row.reason = "", "failed", " ".join(str(error).split())
            logger.warning("%s: %s", link, row.reason)
        counts[row.status] += 1
        write(out, rows.values())
    return counts


def summary(out: Path, counts: Counter[str]) -> str:
    """What a download prints last."""
    return (
        f"downloaded {counts['done']}, there already {counts['there']}, failed {counts['failed']}; "
        f"each in {out / NAME}"
    )
