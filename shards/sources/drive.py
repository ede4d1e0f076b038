"""The files of a public Google Drive folder."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.sources import needed
from shards.sources.outcomes import NAME, Outcome, fetch_all, read

RETRIES, TIMEOUT = 3, 60  # times, seconds
SHARED = "share it with `anyone with the link`"
QUOTA = "Google's download quota of this file is used up; start again in 24 hours"


def folder_id(text: str) -> str:
    """The id in a folder's link, or the id itself."""
    match = re.fullmatch(r"(?:https?://[^?]*/folders/)?([-\w]{10,})/?(?:\?.*)?", text)
    if not match:
        raise UserError(f"{text!r}: no id of a Drive folder; it is what follows /folders/ in links")
    return match[1]


def download(folder: str, out: Path) -> Counter[str]:
    """Fetch all that the folder holds into `out`, names and sub-folders kept; see `fetch_all`.

    Raises:
        UserError: gdown is missing, the folder is private, empty, or not there.
    """
    gdown, rows = needed("gdown"), read(out)
    files = listing(gdown, folder_id(folder))
    out.mkdir(parents=True, exist_ok=True)
    for identity, path in files.items():
        row = rows.setdefault(identity, Outcome(identity))
        row.label = Path(path).parts[0] if "/" in path else ""
    return fetch_all(out, rows, files, lambda row: fetch(gdown, out, row.link, files[row.link]))


def listing(gdown: Any, folder: str) -> dict[str, str]:
    """The path of each file id. In Drive files and folders may share a name: a second file, and one
    that is called as a folder is, gets its id too."""
    try:
        found = gdown.download_folder(
            id=folder, output="", skip_download=True, quiet=True, use_cookies=False, timeout=TIMEOUT
        )
    except (gdown.DownloadError, OSError) as error:  # what requests raises is an OSError
        reason = " ".join(str(error).split())
        raise UserError(f"Drive folder {folder}: not readable, {SHARED} ({reason})") from None
    if not found:
        raise UserError(f"Drive folder {folder}: empty or private; {SHARED}")
    paths: dict[str, str] = {}
    taken = {NAME, *(str(above) for file in found for above in Path(file.path).parents)}
    for file in found:
        path = Path(file.path)
        if str(path) in taken:
            path = path.with_stem(f"{path.stem} ({file.id})")
        taken.add(str(path))
        paths[file.id] = path.as_posix()
    return paths


def fetch(gdown: Any, out: Path, identity: str, path: str) -> str:
    """Fetch one file, going on where a partial one ends; gdown names only whole files."""
    target = out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        return path
    try:
        gdown.download(
            id=identity,
            output=os.fspath(target),
            quiet=True,
            resume=True,
            use_cookies=False,
            retries=RETRIES,
            timeout=TIMEOUT,
        )
    except (gdown.DownloadError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's; requests sets no number
            raise
        if re.search(r"too many users|quota", str(error), re.I):
            raise ValueError(QUOTA) from None
        raise ValueError(f"{error}") from None
    return path
