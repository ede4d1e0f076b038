"""The command line: words kept as typed, mistakes said in one line before anything runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SETTINGS, write_tones

from shards import command
from shards.__main__ import main
from shards.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [f"--{name}={value}" for name, value in SETTINGS.items()]

CALLS: list[tuple[Any, ...]] = []


def work(source: str, *, pattern: str | None = None, folds: int = 5, rate: float = 1.0,
         part: bool = False) -> None:  # fmt: skip
    """Do the work."""
    CALLS.append((source, pattern, folds, rate, part))


def gather(*runs: str) -> None:
    """Gather runs."""
    CALLS.append(runs)


def sweep(source: str, *, grid: tuple[str, ...] = ()) -> None:
    """Sweep."""
    CALLS.append((source, grid))


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def run(*words: str) -> int:
    return command.main("prog", {"work": work, "gather": gather, "sweep": sweep}, words)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["2024"], ("2024", None, 5, 1.0, False)),
        (["1e5", "--pattern=(a)"], ("1e5", "(a)", 5, 1.0, False)),
        (["a,b", "--pattern", "[ab]"], ("a,b", "[ab]", 5, 1.0, False)),
        (["-x.wav", "--pattern=x#1"], ("-x.wav", "x#1", 5, 1.0, False)),
        (["-", "--pattern=none"], ("-", None, 5, 1.0, False)),
        (["--", "--folds"], ("--folds", None, 5, 1.0, False)),
        (["d", "--folds=3", "--rate=1e-3", "--part"], ("d", None, 3, 1e-3, True)),
        (["--part=false", "--folds", "-3", "d"], ("d", None, -3, 1.0, False)),
        (["--source=d", "--pattern=a=b"], ("d", "a=b", 5, 1.0, False)),
        (["d", "--pattern="], ("d", "", 5, 1.0, False)),
        (["None"], ("None", None, 5, 1.0, False)),
    ],
)
def test_words_arrive_as_typed(words: list[str], call: tuple[Any, ...]) -> None:
    assert run("work", *words) == 0
    assert [call] == CALLS


def test_a_flag_given_several_times() -> None:
    assert run("sweep", "d") == run("sweep", "--grid=a=1,2", "d", "--grid", "(b)=c") == 0
    assert CALLS == [("d", ()), ("d", ("a=1,2", "(b)=c"))]


def test_any_number_of_words() -> None:
    assert run("gather", "1", "(b)", "-c") == 0
    assert CALLS == [("1", "(b)", "-c")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wrok"], "did you mean work?"),
        (["work"], "SOURCE is missing"),
        (["work", "d", "--fodls=3"], "did you mean folds?"),
        (["work", "d", "--folds=many"], "--folds=many: expected a whole number"),
        (["work", "d", "--folds=2.5"], "--folds=2.5: expected a whole number"),
        (["work", "d", "--rate=x"], "--rate=x: expected a number"),
        (["work", "d", "--part=maybe"], "--part=maybe: expected true or false"),
        (["work", "d", "--folds"], "--folds needs a value"),
        (["work", "d", "--folds=1", "--folds=2"], "given twice"),
        (["work", "d", "e"], "'e' is one word too many"),
        (["gather", "--runs=a"], "unknown flag --runs"),
    ],
)
def test_mistakes_run_nothing(words, message, capsys):
    assert run(*words) == 2
    said = capsys.readouterr()
    assert CALLS == [] and said.out == ""
    assert message in said.err and said.err.startswith("error: ") and said.err.count("\n") == 1


def test_a_hint_stays_a_line() -> None:
    assert command.nearest("xx", ["ab", "cd"]) == "there are: ab, cd"
    assert command.nearest("xx", [f"a{n}" for n in range(1000)]).endswith("a59 and 940 more")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "work          Do the work." in capsys.readouterr().out
    assert run("work", "--help") == 0
    said = capsys.readouterr().out
    assert "SOURCE" in said and "--folds=5" in said and "--pattern=\n" in said
    assert run() == 2
    assert CALLS == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such thing"), 2),
        (OSError(28, "No space left on device", "/out"), 1),
        (PermissionError(13, "Permission denied", "/out"), 2),
        (FileNotFoundError(2, "No such file or directory", "/out"), 2),
        (OSError(5, "Input/output error", "/out"), 1),
        (OSError(30, "Read-only file system"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_guard(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert command.guard(fail) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_guard_lets_a_bug_through() -> None:
    with pytest.raises(ZeroDivisionError):
        command.guard(lambda: 1 // 0)


def test_without_streams_and_without_a_home(tone_set: Path) -> None:
    line = f"{sys.executable} -m shards {{}} >&- 2>&- <&-; echo $?"
    for words, code in ((f"verify {tone_set}", "0"), (f"reset {tone_set}", "2")):
        done = subprocess.run(["bash", "-c", line.format(words)], cwd=ROOT, capture_output=True)
        assert done.stdout.decode().strip() == code
    assert (tone_set / "dataset.json").exists()
    home = "import os; os.environ.pop('HOME', 0); import pwd; pwd.getpwuid = {}.__getitem__"
    code_ = f"{home}; from shards.__main__ import main; raise SystemExit(main(['info', 'x']))"
    done = subprocess.run([sys.executable, "-c", code_], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: HOME is not set")


def test_a_picture_for_a_device_does_not_replace_it(tone_set: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        assert main(["show", str(tone_set), f"--output={tmp_path}/pipe", "--per_class=1"]) == 0
        assert reader.communicate(timeout=20)[0].startswith(b"\x89PNG")
    assert (tmp_path / "pipe").is_fifo()
    assert main(["duplicates", str(tone_set), f"--output={tmp_path}/new/copies.csv"]) == 0
    assert (tmp_path / "new" / "copies.csv").read_text().startswith("kind,agreement,")


def shards(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shards", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_a_mistake_ends_the_process_in_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["build", "nowhere", str(tmp_path / "o")], "nowhere: no such folder"),
        (["build", str(tmp_path), str(tmp_path / "o"), "--fodls=3"], "did you mean folds?"),
    ):
        done = shards(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_mistakes_of_every_command(tone_set, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, content in (("foreign", "[]"), ("torn", '{"format": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(content)
    one = write_tones(tmp_path / "one", 2, {"low": 440.0})
    out = str(tmp_path / "out")
    for words, message in (
        (["build", str(tmp_path / "empty"), out], "no audio in it"),
        (["build", str(one), out], "one class only, 'low'"),
        (["build", str(one), out, "--group_from=("], "--group_from=(: no regular expression"),
        (["build", str(one), "s3:/bucket/set"], "two slashes behind its colon"),
        (["build", str(one), ""], "OUT is empty"),
        (["info", "a" * 300], "File name too long"),
        (["info", str(tmp_path / "foreign")], "format None, this wavefold reads"),
        (["show", str(tmp_path / "torn")], "has no 'files'; copy it again"),
        (["show", str(tone_set), f"--output={tmp_path}"], f"Is a directory: {tmp_path}; give"),
        (["build", str(one), str(one / "low")], "lies inside the audio folder"),
        (["build", str(one), out, "--n_mels=x"], "--n_mels=x: expected a whole number"),
        (["verify", str(tmp_path / "empty")], "no shard set"),
        (["info", str(tmp_path / "nowhere")], "no shard set"),
        (["show", str(one)], "no shard set"),
        (["info", str(tone_set / "dataset.json")], "no shard set"),
    ):
        assert main(words) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert not Path(out).exists()


def test_build_verify_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = write_tones(tmp_path / "audio (1)", 4, {"2": 440.0, "10": 2000.0})
    out = str(tmp_path / "2024")
    flags = [flag for flag in FLAGS if "group_from" not in flag]
    assert main(["build", str(audio), out, "--folds=2", "--workers=1", *flags]) == 0
    said = capsys.readouterr().out
    assert "segments    12 of 32 x 63" in said and "a second" in said
    assert main(["verify", out]) == 0
    assert capsys.readouterr().out == f"verified: 12 samples in 1 shard of {out}\n"
    assert main(["info", out]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = table.index(["segments", "all", "fold", "1", "fold", "2"])
    counts = {row[0]: [int(n) for n in row[1:]] for row in table[head + 1 :]}
    assert list(counts) == ["2", "10", "all"]
    assert counts["2"][0] == counts["10"][0] == 6 and counts["all"][0] == 12
    assert all(row[0] == sum(row[1:]) for row in counts.values())


def test_verify_exits_1_and_prints_each_fault(tmp_path, capsys):
    audio = write_tones(tmp_path / "audio", 4, {"low": 440.0, "high": 2000.0})
    out = tmp_path / "set"
    assert main(["build", str(audio), str(out), "--folds=2", "--workers=1", *FLAGS]) == 0
    tar = out / "samples-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024] + b"x" * 1024)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(out)])
    said = capsys.readouterr().out
    assert stop.value.code == 1 and "samples-000000.tar: SHA-256" in said


def test_demo_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    folder = tmp_path / "a b"
    assert main(["demo", str(folder), "--per_class=5"]) == 0
    typed = capsys.readouterr().out.partition("now: ")[2]
    words = shlex.split(typed)
    assert words[:3] == ["python", "-m", "shards"]
    assert main([*words[3:], "--workers=1"]) == 0
    assert "rejected    2" in capsys.readouterr().out


def test_show_draws(tone_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    assert main(["show", str(tone_set), f"--output={picture}", "--per_class=1"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m shards --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_bench_prints_rates_beside_a_memory_copy(tone_set, capsys):
    assert main(["bench", str(tone_set), "--seconds=0.1", "--threads=1"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip() for row in rows[2:]] == [
        "memory copy", "in turn", "shuffled", "shuffled, in memory", "webdataset",
    ]  # fmt: skip
    sample = 2 * 32 * 63  # bytes
    for _, rate, gigabytes, share in rows[2:]:
        rate = float(rate.replace(",", ""))
        assert float(gigabytes) == pytest.approx(rate * sample / 1e9, abs=0.006)
        assert share.strip().endswith("%")
    assert main(["bench", str(tone_set), "--threads=0"]) == 2
