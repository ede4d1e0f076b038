"""`python -m shards`: from audio to a checked shard set."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import command
from shards.build import build as build_set
from shards.errors import UserError
from shards.sources.legacy import convert as convert_set

if TYPE_CHECKING:
    from shards.index import ShardSet


def demo(out: str, *, seed: int = 0, per_class: int = 20) -> None:
    """Synthesise a small labelled audio folder to try things on."""
    from shards.sources.demo import synthesize

    count = synthesize(out, seed=seed, per_class=per_class)
    print(f"{count} recordings in {out}; now: {next_command(out)}")


def next_command(out: str) -> str:
    """What to type after `demo`."""
    from shlex import quote

    words = f"{quote(out)} {quote(out.rstrip('/') + '-shards')}"
    return f"python -m shards build {words} --segment_seconds=2 --group_from='site-[0-9]'"


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


def verify(out: str) -> None:
    """Check every byte of a shard set; exit 1 and a line a fault if something is wrong."""
    from shards.index import read_info
    from shards.verify import verify

    faults = verify(out)
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(1)
    info = read_info(Path(out))
    print(f"verified: {info['samples']} samples in {len(info['shards'])} shards of {out}")


def info(out: str) -> None:
    """Show what a shard set holds: settings, classes by fold, hours, size."""
    from shards.index import open_set

    print(table(open_set(out)))


def show(out: str, *, output: str | None = None, per_class: int = 4) -> None:
    """Draw spectrograms of every class into a PNG (OUT/show.png)."""
    from shards.index import open_set
    from shards.picture import contact_sheet

    picture = Path(output) if output is not None else Path(out) / "show.png"
    contact_sheet(open_set(out), picture, per_class=per_class)
    print(f"drawn: {picture}")


def table(shard_set: "ShardSet") -> str:
    """A shard set as people read it: settings, then segments of each class by fold or part."""
    from shards.build import summary

    info = shard_set.info
    mel, cut, split = info["mel"], info["segment"], info["split"]
    return "\n".join(
        [
            summary(shard_set),
            f"mel         {mel['n_mels']} bands, {known(mel['fmin'])} to {known(mel['fmax'])} Hz, "
            f"n_fft {known(mel['n_fft'])}, hop {known(mel['hop_length'])}, "
            f"at {known(mel['sample_rate'])} Hz",
            f"segment     {known(cut['seconds'])} s, overlap {known(cut['overlap'])}",
            f"split       {split['method']} (seed {split['seed']}), {info['groups']} groups",
            "",
            *segment_table(shard_set),
        ]
    )


def known(value: float | None) -> str:
    """A number, or that nobody said it: a converted set may lack some."""
    return "unknown" if value is None else f"{value:.10g}"


def segment_table(shard_set: "ShardSet") -> list[str]:
    """Lines: segments of each class, in all and by fold, or by part if there are no folds."""
    import numpy as np

    from shards.index import SPLITS

    folds, names = shard_set.folds, shard_set.class_names
    columns = [f"fold {name}" for name in folds] or list(SPLITS)
    counts = np.zeros((len(names), len(columns)), np.int64)
    index = shard_set.index
    np.add.at(counts, (index["label"], index["fold" if folds else "split"]), 1)
    rows = [("segments", ["all", *columns])]
    rows += [(n, [str(c.sum()), *map(str, c)]) for n, c in zip(names, counts, strict=True)]
    rows += [("all", [str(counts.sum()), *map(str, counts.sum(axis=0))])]
    wide = max(len(name) for name, _ in rows)
    return [f"{name:<{wide}}" + "".join(f"{x:>10}" for x in cells) for name, cells in rows]


@functools.wraps(convert_set)
def convert(old: str, out: str, **words: Any) -> None:
    print(convert_set(old, out, **words))


COMMANDS: command.Commands = {
    "demo": demo,
    "download": download,
    "convert": convert,
    "build": build,
    "verify": verify,
    "info": info,
    "show": show,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return command.main("python -m shards", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
