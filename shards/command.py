"""One command line for both packages: fire behind a check of names, words kept as they were typed.

fire alone runs a command before it complains of a misspelt flag, and turns folder `2024` into a
number and `(a)` into `a`. So the words are bound to the signature here, each converted by its own
annotation, and fire is handed what can no longer surprise. A command is a function whose positional
parameters are words that have to be there and whose keyword-only parameters are its flags.
"""

import contextlib
import difflib
import errno
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from shards.errors import ShardError, TrainingError, UserError

MOST = 60  #: words that an error lists
Commands = Mapping[str, Callable[..., Any]]

OURS = ("shards", "toolkit", "launch")  # whose news is told; of libraries only what is wrong
NO_SUCH_PLACE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
NO_ACCESS, NO_ROOM = (errno.EACCES, errno.EPERM), (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint ` (did you mean X?)` for a misspelt word, or the list of what there is."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    more = f" and {len(known) - MOST} more" if len(known) > MOST else ""
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known[:MOST])}{more}"


def convert(name: str, text: str, annotation: Any) -> Any:
    """The typed word `text` as the type that the parameter `name` is annotated with.

    Raises:
        UserError: the word is no such value.
    """
    kinds = get_args(annotation) or (annotation,)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    if get_origin(annotation) is tuple:  # a flag that may be given several times
        return tuple(text.split("\n"))
    kind = next(k for k in kinds if k is not type(None))
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise UserError(f"--{name}={text}: expected true or false")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UserError(f"--{name}={text}: expected {expected}") from None


def parse_flags(
    command: str, parameters: Mapping[str, inspect.Parameter], words: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """The typed words as flags and positional words, both still text.

    Flags are `--name=value`, `--name value`, or `--name` alone for a bool; everything after `--` is
    positional.
    """
    flags: dict[str, str] = {}
    loose: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return flags, loose + queue
        if not word.startswith("--"):
            loose.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        if "." in name and any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
            loose.append(word)  # a setting of a config, --section.key=value
            continue
        name = name.replace("-", "_")
        parameter = parameters.get(name)
        if parameter is None or parameter.kind is parameter.VAR_POSITIONAL:
            raise UserError(f"{command}: unknown flag --{name}; {nearest(name, list(parameters))}")
        several = get_origin(parameter.annotation) is tuple
        if name in flags and not several:
            raise UserError(f"{command}: --{name} is given twice; keep one")
        if not has_value and parameter.annotation is bool:
            value = "true"
        elif not has_value:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"{command}: --{name} needs a value, as in --{name}=...")
            value = queue.pop(0)
        flags[name] = f"{flags[name]}\n{value}" if name in flags else value
    return flags, loose


def bind(
    command: str, function: Callable[..., Any], words: Sequence[str]
) -> tuple[list[Any], dict[str, Any]]:
    """The typed words as the arguments and keyword arguments of `function`.

    Raises:
        UserError: a flag that is unknown or without its value, a word missing or too many.
    """
    parameters = inspect.signature(function).parameters
    flags, loose = parse_flags(command, parameters, words)
    arguments, options = [], {}
    for p in parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            arguments += [convert(p.name, word, p.annotation) for word in loose]
            loose = []
        elif p.kind is p.KEYWORD_ONLY:
            if p.name in flags:
                options[p.name] = convert(p.name, flags[p.name], p.annotation)
        elif p.name in flags or loose:
            word = flags[p.name] if p.name in flags else loose.pop(0)
            if not word:  # of a variable that is not set; it would mean the current folder
                raise UserError(f"{command}: {p.name.upper()} is empty; . is the current folder")
            arguments.append(convert(p.name, word, p.annotation))
        else:
            raise UserError(f"{command}: {p.name.upper()} is missing; see --help")
    if loose:
        raise UserError(f"{command}: {loose[0]!r} is one word too many; see --help")
    return arguments, options


def usage(program: str, commands: Commands) -> str:
    """What `--help` prints: a line a command, from the first line of its docstring."""
    lines = [f"Usage: {program} COMMAND [ARGUMENT ...] [--flag=value ...]", ""]
    for name, function in commands.items():
        lines.append(f"  {name:<14}{(inspect.getdoc(function) or '').splitlines()[0]}")
    return "\n".join([*lines, "", f"{program} COMMAND --help tells the flags of a command."])


def command_usage(program: str, name: str, function: Callable[..., Any]) -> str:
    """What `COMMAND --help` prints: its line, its flags with their defaults, its docstring."""
    positional, flags = [], []
    for p in inspect.signature(function).parameters.values():
        if p.default is p.empty:
            positional.append(p.name.upper() + ("..." if p.kind is p.VAR_POSITIONAL else ""))
        else:
            flags.append(f"  --{p.name}={'' if p.default is None else p.default}")
    head = f"Usage: {program} {name} {' '.join(positional)}{' [--flag=value ...]' if flags else ''}"
    about = re.split(r"\n\n(?:Returns|Raises):", inspect.getdoc(function) or "")[0]
    return "\n".join([head, "", about, *(["", "Flags:"] if flags else []), *flags])


def main(program: str, commands: Commands, argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 2 the user's words were off, 1 anything else."""
    words = list(sys.argv[1:] if argv is None else argv)
    open_streams()
    if not words or words[0] in ("-h", "--help", "help"):
        return guard(lambda: print(usage(program, commands), flush=True)) or (0 if words else 2)
    name, words = words[0], words[1:]
    before_dashes = words[: words.index("--")] if "--" in words else words
    if name in commands and ("--help" in before_dashes or "-h" in before_dashes):
        return guard(lambda: print(command_usage(program, name, commands[name]), flush=True))
    return guard(lambda: dispatch(program, commands, name, words))


def alone(module: str, command: Callable[..., Any], argv: Sequence[str] | None = None) -> int:
    """`main` of a module that is one command, `python -m MODULE`."""
    words = sys.argv[1:] if argv is None else argv
    return main("python -m", {module: command}, [module, *words])


def dispatch(program: str, commands: Commands, name: str, words: Sequence[str]) -> None:
    """Check the words, then have fire call the command with them."""
    if name not in commands:
        raise UserError(f"{program}: unknown command {name!r}; {nearest(name, list(commands))}")
    arguments, options = bind(f"{program} {name}", commands[name], words)
    if os.path.expanduser("~") == "~":  # librosa, torch and our cache would each say so their way
        raise UserError(f"HOME is not set, and user {os.getuid()} has none; HOME=/tmp will do")

    import fire  # after the check: --help and errors need not wait for it

    told = logging.StreamHandler(sys.stderr)
    told.addFilter(lambda x: x.levelno > logging.INFO or x.name.partition(".")[0] in OURS)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[told])
    fire.Fire({name: lambda: commands[name](*arguments, **options)}, command=[name], name=program)


def open_streams() -> None:
    """Give a process that was started without standard streams some that lead nowhere; the next
    file would get their numbers, and with them whatever is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Have Ctrl-C, while a command line imports what it needs, end it as `guard` does."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(interrupted())


def interrupted() -> int:
    """Say so; the exit code."""
    print("interrupted; start again to go on", file=sys.stderr)
    return 130


def guard(action: Callable[[], Any], speaks: bool = True) -> int:
    """Run `action`; what the user can mend becomes one line on stderr and exit code 2, a full,
    broken or read-only disk one line and exit code 1, and so does a shard that changed.

    Of the processes of one launch only those that `speaks` print it.
    """
    try:
        action()
    except (UserError, TrainingError) as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except ShardError as error:
        print(f"error: {error}; python -m shards verify tells more", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough; nor may the flush at exit complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno not in (*NO_ACCESS, *NO_ROOM):
            raise
        where = "" if error.filename is None else f": {error.filename2 or error.filename}"
        way_out = "give another place" if error.errno in NO_SUCH_PLACE else "start again"
        if error.errno in (*NO_ACCESS, *NO_ROOM):
            way_out = "make room or get access, then start again"
        if speaks:
            print(f"error: {error.strerror}{where}; {way_out}", file=sys.stderr)
        return 2 if error.errno in (*NO_SUCH_PLACE, *NO_ACCESS) else 1
    except KeyboardInterrupt:
        return interrupted()
    return 0
