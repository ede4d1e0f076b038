"""Audio of a list of links: YouTube, and whatever else yt-dlp knows."""

import hashlib
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.sources import needed
from shards.sources.outcomes import Outcome, fetch_all, read

#: A link, in quotes if it has a comma; then perhaps a comma or blanks and a label.
LINE = re.compile(r'(?:"(?P<quoted>[^"]+)"|(?P<bare>[^\s,"]+))(?:[\s,]+(?P<label>.*))?')
UNLABELLED = "unlabelled"
RETRIES = 10


def read_links(file: Path) -> dict[str, str]:
    """The label of each link in a list; empty lines, `#` comments and a heading are passed over.

    Raises:
        UserError: no list, nothing in it, a line that is no link, a label that cannot be a folder,
            or a link with two labels.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: no list of links that can be read ({error})") from None
    links: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        match = LINE.fullmatch(text)
        link = (match["quoted"] or match["bare"]) if match else text
        if not text or (number == 1 and link.lower() in ("link", "url")):
            continue
        label = ((match and match["label"]) or "").strip().strip('"') or UNLABELLED
        if "://" not in link:
            raise UserError(f"{file}, line {number}: {text!r} is no link; expected https://...")
        if "/" in label or label.startswith("."):
            raise UserError(f"{file}, line {number}: label {label!r} cannot name a folder; mend it")
        if links.setdefault(link, label) != label:
            raise UserError(f"{file}, line {number}: {link} is {links[link]!r} and {label!r}")
    if not links:
        raise UserError(f"{file}: no link in it; write one a line, its label behind it")
    return links


def download(links_file: Path, out: Path) -> Counter[str]:
    """Fetch the best audio stream of each link, as it is, into OUT/LABEL; see `fetch_all`.

    Raises:
        UserError: yt-dlp is missing, or the list is off; see `read_links`.
    """
    yt_dlp, links, rows = needed("yt_dlp"), read_links(links_file), read(out)
    out.mkdir(parents=True, exist_ok=True)
    for link, label in links.items():
        row = rows.setdefault(link, Outcome(link, label))
        if row.label != label:
            row.file, row.label = moved(out, row.file, label), label
    return fetch_all(out, rows, links, lambda row: fetch(yt_dlp, out, row))


def moved(out: Path, file: str, label: str) -> str:
    """Move a finished file under another label; its path below `out`."""
    if not (file and (out / file).is_file()):
        return ""
    (out / label).mkdir(exist_ok=True)
    os.replace(out / file, out / label / Path(file).name)
    return f"{label}/{Path(file).name}"


def fetch(yt_dlp: Any, out: Path, row: Outcome) -> str:
    """Fetch one link, going on where a partial file ends.

    Its name carries the video's id, and a hash of the link, since not every site's ids are unique.
    """
    mark = hashlib.blake2b(row.link.encode(), digest_size=4).hexdigest()
    folder = str(out / row.label).replace("%", "%%")  # a template of yt-dlp
    options = {
        "format": "bestaudio/best",
        "outtmpl": f"{folder}/%(id).80B-{mark}.%(ext)s",
        "noplaylist": True,
        "playlist_items": "0",
        "fixup": "never",  # would want ffmpeg
        "retries": RETRIES,
        "fragment_retries": RETRIES,
        "cachedir": False,
        "noprogress": True,
        "color": "never",
        "logger": logging.Logger("yt_dlp", logging.CRITICAL),  # fetch_all tells it
    }
    try:
        with yt_dlp.YoutubeDL(options) as session:
            found = session.extract_info(row.link)
    except yt_dlp.utils.YoutubeDLError as error:
        raise ValueError(str(error).removeprefix("ERROR: ")) from None
    if not found or "entries" in found:
        raise ValueError("a playlist; give its videos, a line each")
    return str(Path(found["requested_downloads"][0]["filepath"]).relative_to(out.absolute()))
