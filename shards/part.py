"""A part of a build, `--part=I/N`: which shards are its own, and what it says."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from shards.errors import UserError
from shards.index import BESIDE
from shards.output import locked
from shards.plan import Plan
from shards.workshop import missing


class Part(NamedTuple):
    """`--part=I/N`: the shards whose number divided by N leaves I."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def folder(self, out: Path) -> Path:
        """Where its promise stands, and its lock."""
        return out / BESIDE / f"part-{self.number}-of-{self.parts}"

    def has(self, shard: int) -> bool:
        """Whether a shard is in it."""
        return shard % self.parts == self.number


def parse_part(text: str) -> Part:
    """`0/3` as the first of three parts.

    Raises:
        UserError: no such part.
    """
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise UserError(f"--part={text}: expected I/N counted from 0, as in 0/3, 1/3 and 2/3")
    return Part(int(number), int(parts))


@contextmanager
def held(out: Path, share: Part | None) -> Iterator[None]:
    """Hold `out` for a build, or a part of it against the same part."""
    if share is None:
        with locked(out):
            yield
    else:
        with locked(out, shared=True), locked(share.folder(out)):
            yield


def part_done(plan: Plan, share: Part) -> str:
    """What a part says at its end; it does not finish the set, as another may just do the same."""
    todo = missing(plan)
    end = f"python -m shards merge {quote(str(plan.out))}"
    if not todo:
        return f"part {share}: done, and so is every shard; now: {end}"
    return (
        f"part {share}: done; {len(todo)} of {len(plan.shards)} shards are not here yet. When all "
        f"parts are, in one folder together with their .build: {end}"
    )


def check_all_written(plan: Plan) -> None:
    """Raise a UserError that names the missing shards and the commands that make them."""
    todo = missing(plan)
    if not todo:
        return
    found = (plan.out / BESIDE).glob("part-*-of-*/plan.json")
    parts = max((int(file.parent.name.rpartition("-")[2]) for file in found), default=1)
    numbers = sorted({shard % parts for shard in todo})
    flags = [f" --part={number}/{parts}" if parts > 1 else "" for number in numbers]
    shards = ", ".join(map(str, todo[:10])) + f" and {len(todo) - 10} more" * (len(todo) > 10)
    also = f" (and the same with{','.join(flags[1:])})" if flags[1:] else ""
    raise UserError(
        f"{plan.out}: {len(todo)} of {len(plan.shards)} shards are missing ({shards}); parts made "
        f"elsewhere are copied with their .build folder; to make them: "
        f"{plan.command}{flags[0]}{also}"
    )
