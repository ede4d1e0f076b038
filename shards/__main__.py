"""`python -m shards`: from audio to a checked shard set."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import command
from shards.build import build as build_set

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


def duplicates(
    out: str, *, all: bool = False, strict: bool = False, output: str | None = None
) -> None:
    """Find recordings that are copies of each other, the same audio or re-encoded, across folds.

    Copies across folds or parts make scores flatter; --all lists those inside one, too. --output
    writes all into a CSV file; --strict makes copies across folds or parts exit code 1.
    """
    from shards.duplicates import as_csv, find, summary, table
    from shards.index import open_set, write_atomic

    found = find(open_set(out))
    print("\n".join([*table(x for x in found if x.leaks or all), summary(found)]))
    if output is not None:
        write_atomic(Path(output), as_csv(found))
    if strict and any(x.leaks for x in found):
        sys.exit(1)


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
            f"mel         {mel['n_mels']} bands, {mel['fmin']:g} to {mel['fmax']:g} Hz, n_fft "
            f"{mel['n_fft']}, hop {mel['hop_length']}, at {mel['sample_rate']} Hz",
            f"segment     {cut['seconds']:g} s, overlap {cut['overlap']:g}",
            f"split       {split['method']} (seed {split['seed']}), {info['groups']} groups",
            "",
            *segment_table(shard_set),
        ]
    )


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


COMMANDS: command.Commands = {
    "demo": demo,
    "build": build,
    "verify": verify,
    "info": info,
    "duplicates": duplicates,
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
