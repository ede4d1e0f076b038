"""Files that a careless or ill-meaning person has: each a sample or a line of rejected.csv."""

import csv
import os
import re
import socket
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tones, lines, write_tone
from media import broken, encode, riff, sound, tone

SAMPLE, UNREADABLE = "sample", "not readable as audio"
SUFFIXES = ["aac", "aif", "caf", "flac", "m4a", "mkv", "mp3", "ogg", "opus", "wav", "webm", "wma"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def noise_bytes(n: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(n)


def files(aside: Path) -> Iterator[tuple[str, bytes, str]]:
    """Name, content and fate: a sample, or the beginning of a reason."""
    pcm = (tone() * 32767).astype("<i2").tobytes()
    for n, suffix in enumerate(SUFFIXES):
        yield f"random.{suffix}", noise_bytes(50_000, n), UNREADABLE
    for suffix in ("wav", "mp3", "flac", "ogg", "mp4", "webm"):
        yield f"empty.{suffix}", b"", UNREADABLE
    for suffix in ("wav", "mp3", "m4a", "aac"):
        yield f"text.{suffix}", b"The quick brown fox.\n" * 500, UNREADABLE
    yield "zeros.wav", bytes(10_000), UNREADABLE
    yield "zeros.mp3", bytes(10_000), UNREADABLE
    yield "picture.flac", PNG, UNREADABLE
    yield "archive.wav", b"PK\x03\x04" + noise_bytes(1000, 20), UNREADABLE

    wav, flac, ogg = sound("WAV", "PCM_16"), sound("FLAC"), sound("OGG")
    yield "cut-in-riff.wav", wav[:10], UNREADABLE
    yield "cut-in-format.wav", wav[:30], UNREADABLE
    yield "header-alone.wav", wav[:44], "no samples"
    yield "cut-in-a-sample.wav", wav[: 44 + 9001], SAMPLE
    yield "cut-in-header.flac", flac[:30], UNREADABLE
    yield "cut.ogg", ogg[:40], UNREADABLE
    long_ogg = sound("OGG", wave=np.frombuffer(noise_bytes(160_000, 30), "i1") / 256)
    yield "half.ogg", long_ogg[: len(long_ogg) // 2], SAMPLE
    yield "ten-hours.wav", riff(pcm, claimed=2 * 16000 * 36000), SAMPLE
    yield "too-long-for-32-bits.wav", riff(pcm, claimed=2**32 - 1), SAMPLE
    yield "trailing.wav", wav + noise_bytes(999, 21), SAMPLE
    yield "flipped.mp3", broken(sound("MP3"), 22), SAMPLE
    yield "flipped.wav", broken(wav, 23), SAMPLE

    yield "0Hz.wav", riff(pcm, rate=0), UNREADABLE
    yield "7Hz.wav", riff(pcm, rate=7), "a sample rate of 7 Hz"
    yield "2GHz.wav", riff(pcm, rate=2_000_000_000), "a sample rate of"
    yield "4GHz.wav", riff(pcm, rate=4_000_000_000), UNREADABLE
    yield "no-channel.wav", riff(pcm, channels=0), UNREADABLE
    yield "9999-channels.wav", riff(pcm, channels=9999), UNREADABLE
    yield "3-bit.wav", riff(pcm, bits=3), SAMPLE
    yield "codec-unknown.wav", riff(pcm, code=0x4321), "no decoder"
    long = (tone().astype("f8") * 2**62).astype("<i8").tobytes()
    yield "64-bit.wav", riff(long, bits=64), SAMPLE
    yield "one-sample.wav", riff(b"\x00\x40"), SAMPLE

    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM",
                    "MS_ADPCM", "GSM610"):  # fmt: skip
        yield f"{subtype}.wav", sound("WAV", subtype), SAMPLE
    for kind in ("RF64", "W64", "AIFF", "AU", "CAF", "WAVEX"):
        suffix = {"AIFF": "aif", "WAVEX": "wav"}.get(kind, kind.lower())
        yield f"{kind}.{suffix}", sound(kind, "PCM_16"), SAMPLE
    for channels in (2, 5, 8, 16):
        yield f"{channels}-channels.wav", sound("WAV", wave=tone(channels=channels)), SAMPLE
    for rate in (8000, 11025, 22050, 44100, 96000, 192000):
        yield f"{rate}Hz.wav", sound("WAV", rate=rate), SAMPLE
    yield "UPPER.WAV", wav, SAMPLE

    yield "silence.wav", sound("WAV", wave=np.zeros(8000)), "silent"
    opposite = tone() * [[1, -1]]
    yield "opposite.wav", sound("WAV", "FLOAT", opposite), "silent: its channels cancel"
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        wave = tone()
        wave[77] = value
        yield f"{name}.wav", sound("WAV", "FLOAT", wave), "not finite: 1 NaN"
    huge = tone().astype("f8")
    yield "1e300.wav", sound("WAV", "DOUBLE", huge * 1e300), "not finite"
    yield "1e30.wav", sound("WAV", "FLOAT", huge * 1e30), "no audio: a sample of 5e+29"
    yield "offset.wav", sound("WAV", wave=tone() * 0.1 + 0.5), SAMPLE

    for codec, name, form, video in (
        ("aac", "a.m4a", None, False), ("alac", "alac.m4a", None, False),
        ("aac", "a.aac", "adts", False), ("libopus", "a.opus", "ogg", False),
        ("libopus", "a.webm", None, False), ("aac", "film.mp4", None, True),
        ("libopus", "film.mkv", None, True), ("pcm_s16le", "film.mov", None, True),
        ("wmav2", "a.wma", "asf", False), ("ac3", "a.mka", "matroska", False),
        ("aac", "an-m4a-in-truth.wav", "mp4", False),
    ):  # fmt: skip
        yield (
            name,
            encode(aside / "made", codec, form=form or suffix_form(name), video=video),
            SAMPLE,
        )
    yield "mute.mp4", encode(aside / "made", None, form="mp4", video=True), "no audio stream in it"
    film = encode(aside / "made", "aac", form="mp4", video=True)
    yield "half.mp4", film[: len(film) // 2], UNREADABLE
    webm = encode(aside / "made", "libopus", form="webm")
    yield "half.webm", webm[: len(webm) // 2], SAMPLE
    yield "list.mp4", b"#EXTM3U\n#EXTINF:1,\ngood.wav\n#EXT-X-ENDLIST\n", UNREADABLE
    yield "concat.mkv", b"ffconcat version 1.0\nfile good.wav\n", UNREADABLE

    for name in ("a b.wav", "a.v2.wav", 'it\'s "q".wav', "new\nline.wav", "-rf.wav", "a,b;c.wav",
                 unicodedata.normalize("NFC", "é.wav"), unicodedata.normalize("NFD", "é.wav"),
                 "音 🎵.wav", "%s%n{}.wav", "x" * 200 + ".wav", "http:a.wav",
                 "$(id).wav"):  # fmt: skip
        yield name, wav, SAMPLE


def suffix_form(name: str) -> str:
    """What FFmpeg calls the container of a suffix."""
    return {"m4a": "ipod", "mkv": "matroska"}.get(name[-3:], name.rpartition(".")[2])


@contextmanager
def odd_things(folder: Path) -> Iterator[dict[str, str]]:
    """What is no regular file, and the fate of each."""
    (folder / "link.wav").symlink_to("UPPER.WAV")
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    (folder / "circle.wav").symlink_to("circle.wav")
    (folder / "zero.wav").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.wav")
    (folder / "to-a-pipe.wav").symlink_to("pipe.wav")
    (folder / "folder.wav").mkdir()
    write_tone(folder / "folder.wav" / "in.wav", 440.0)
    bad = os.fsencode(folder) + b"/bad-\xff.wav"
    with open(bad, "wb") as out:
        out.write(b"RIFF")
    for hidden in (".hidden.wav", "._UPPER.WAV"):
        (folder / hidden).write_bytes(b"not audio")
    fates = {
        "link.wav": SAMPLE,
        "dangling.wav": UNREADABLE,
        "circle.wav": UNREADABLE,
        "zero.wav": UNREADABLE,
        "pipe.wav": UNREADABLE,
        "to-a-pipe.wav": UNREADABLE,
        "folder.wav/in.wav": SAMPLE,
        "bad-\\udcff.wav": "its name is not valid UTF-8",
    }
    if os.geteuid():
        (folder / "secret.wav").write_bytes(b"RIFF")
        (folder / "secret.wav").chmod(0)
        fates["secret.wav"] = UNREADABLE
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket has to be short
        try:
            server.bind("socket.wav")
        finally:
            os.chdir(here)
        yield fates | {"socket.wav": UNREADABLE}


@pytest.mark.timeout(100)
def test_each_is_a_sample_or_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "audio" / "hostile"
    folder.mkdir(parents=True)
    for n in range(2):
        write_tone(tmp_path / "audio" / "plain" / f"{n}.wav", 440.0)
    fates = {}
    for name, content, fate in files(tmp_path):
        assert name not in fates
        (folder / name).write_bytes(content)
        fates[name] = fate
    out = tmp_path / "set"
    with odd_things(folder) as odd:
        fates |= odd
        assert len(fates) >= 60
        build_tones(tmp_path / "audio", out, folds=2, group_from=None, workers=2)
    text = capfd.readouterr()
    assert "Traceback" not in text.out + text.err
    with open(out / "rejected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    reasons = {row["path"].removeprefix("hostile/"): row["reason"] for row in rows}
    used = {x["path"].removeprefix("hostile/"): x for x in lines(out) if x["label"] == "hostile"}
    assert reasons.keys() | used.keys() == fates.keys() and not reasons.keys() & used.keys()
    wrong = {
        name: (fate, reasons.get(name, SAMPLE))
        for name, fate in fates.items()
        if not reasons.get(name, SAMPLE).startswith(fate)
    }
    assert not wrong
    assert all(re.fullmatch(r"[^\n]{3,200}", reason) for reason in reasons.values())
    assert used["ten-hours.wav"]["seconds"] == 1.0
