"""`python -m shards`: from audio to a checked shard set."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards import command
from shards.errors import UserError

with command.loading():
    from shards.build import build as build_set
    from shards.remote import is_url
    from shards.sources.legacy import convert as convert_set


def demo(
    out: str,
    *,
    kind: str = "environment",
    seed: int = 0,
    per_class: int | None = None,
    seconds: float | None = None,
) -> None:
    """Synthesise a labelled audio folder to try things on.

    --kind=environment, deepfake, genre or drone. --seconds makes all recordings that long; a kind
    has its own default, and its own number of recordings a class.
    """
    from shlex import quote

    from shards.sources.demo import MANIFEST, find, synthesize

    count = synthesize(out, seed, per_class, kind=kind, seconds=seconds)
    table = Path(out) / MANIFEST
    place = out.rstrip("/") if Path(out).name not in ("", "..") else str(Path(out).resolve())
    words = f"{quote(str(table) if table.exists() else out)} {quote(f'{place}-shards')}"
    told = find(kind).BUILD.format(seconds=seconds or find(kind).SECONDS[0])
    print(f"{count} recordings in {out}; now: python -m shards build {words} {told}")


def download(
    source: str,
    what: str,
    out: str,
    *,
    revision: str | None = None,
    include: str | None = None,
    repo_type: str = "dataset",
) -> None:
    """Fetch audio: youtube LINKS, drive FOLDER_ID or hub REPO.

    youtube: LINKS is a list, a link a line and perhaps a label behind it (`LINK,LABEL`); the audio
    goes into OUT/LABEL. drive: a public Google Drive folder. hub: files of a Hugging Face
    repository, --repo_type=dataset or model, --revision a branch, tag or commit, --include patterns
    of file names with commas between. What was stopped or failed goes on when started again.
    """
    from shards.sources import drive, hub, youtube
    from shards.sources.outcomes import summary

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{out}: is a file, not a folder; give another place")
    if source == "hub":
        print(hub.download(what, folder, repo_type=repo_type, revision=revision, include=include))
        return
    if source not in ("youtube", "drive"):
        raise UserError(f"download {source}: there are youtube LINKS, drive FOLDER_ID, hub REPO")
    if (revision, include, repo_type) != (None, None, "dataset"):
        raise UserError(f"download {source}: --revision, --include, --repo_type are flags of hub")
    youtube_asked = source == "youtube"
    counts = youtube.download(Path(what), folder) if youtube_asked else drive.download(what, folder)
    print(summary(folder, counts))
    if not counts["done"] + counts["there"]:
        sys.exit(1)


@functools.wraps(build_set)
def build(audio: str, out: str, **words: Any) -> None:
    print(build_set(audio, out, **words))


def merge(out: str) -> None:
    """Join what `build --part=I/N` made into a finished shard set."""
    from shards.duplicates import warn
    from shards.index import open_set
    from shards.merge import merge
    from shards.summary import summary

    if is_url(out):
        raise UserError(f"{out}: parts are merged on a disk; `build` without --part can upload")
    merge(out)
    built = open_set(Path(out))
    print("\n".join([summary(built), *warn(built)]))


def verify(out: str, *, audio: str | None = None) -> None:
    """Check every byte of a shard set; exit 1 and a line a fault if something is wrong.

    --audio=DIR also reads the recordings again, and names those that changed since the build.
    """
    from shards.index import open_set
    from shards.verify import verify

    faults = verify(out, audio)
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(1)
    info = open_set(out).info
    shards = len(info["shards"])
    print(f"verified: {info['samples']} samples in {shards} shard{'s' * (shards != 1)} of {out}")


def info(out: str, *, count: str = "segments") -> None:
    """Show what a shard set holds: hours, settings, and each class by fold and part.

    --count=recordings, groups, segments or seconds says what is counted.
    """
    from shards.balance import table
    from shards.index import open_set
    from shards.summary import summary

    shard_set = open_set(out)
    rows = table(shard_set, count)
    print(summary(shard_set), "", *rows, sep="\n")


def reset(out: str, *, yes: bool = False) -> None:
    """Remove what build and show wrote into OUT, and nothing else; asks first without --yes."""
    from shards import output

    if is_url(out):
        raise UserError(f"{out}: reset removes sets from disks; use your store's own tool here")
    output.check_ours(Path(out))
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{out}: not on a terminal, so nobody can be asked; say --yes to remove it")
    if not yes:
        print(f"remove the shard set {out}? [y/N] ", end="", flush=True)
    if yes or sys.stdin.readline().strip().lower() in ("y", "yes"):
        output.reset(Path(out))
        print(f"removed: the shard set {out}")
    else:
        print("nothing was removed")


def duplicates(
    out: str, *, all: bool = False, strict: bool = False, output: str | None = None
) -> None:
    """Find recordings that are copies of each other, the same audio or re-encoded, across folds.

    Copies across folds or parts make scores flatter; --all lists those inside one, too. --output
    writes all into a CSV file; --strict makes copies across folds or parts exit code 1.
    """
    from shards.duplicates import as_csv, find, summary, table
    from shards.durable import write_output
    from shards.index import open_set

    found = find(open_set(out))
    print("\n".join([*table(x for x in found if x.leaks or all), summary(found)]))
    if output is not None:
        write_output(Path(output), as_csv(found))
    if strict and any(x.leaks for x in found):
        sys.exit(1)


def show(out: str, *, output: str | None = None, per_class: int = 4) -> None:
    """Draw spectrograms of every class into a PNG (OUT/show.png)."""
    from shards.index import open_set
    from shards.picture import contact_sheet

    picture = Path(output or ("show.png" if is_url(out) else Path(out) / "show.png"))
    contact_sheet(open_set(out), picture, per_class=per_class)
    print(f"drawn: {picture}")


def bench(out: str, *, seconds: float = 2.0, threads: int = 2) -> None:
    """Measure how fast a shard set is read here, beside a memory copy and plain webdataset.

    --seconds is for each way of reading; --threads those that read, as in data.threads.
    """
    from shards.index import open_set
    from shards.speed import measure

    if seconds <= 0 or threads < 1:
        raise UserError(f"--seconds={seconds:g} --threads={threads}: above 0, and at least 1")
    for line in measure(open_set(out), seconds, threads):
        print(line, flush=True)


@functools.wraps(convert_set)
def convert(old: str, out: str, **words: Any) -> None:
    print(convert_set(old, out, **words))


COMMANDS: command.Commands = {
    one.__name__: one
    for one in (
        demo, download, convert, build, merge, verify, info, duplicates, show, bench, reset,
    )
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return command.main("python -m shards", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
