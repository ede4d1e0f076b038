"""shards.segment against arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.mel import MelSettings, log_mel
from shards.segment import fill_up, segment_starts


@pytest.mark.parametrize(
    ("n", "length", "hop", "starts"),
    [
        (50, 100, 100, [0]),
        (100, 100, 50, [0]),
        (101, 100, 100, [0]),  # one odd sample makes no segment
        (109, 100, 100, [0]),
        (110, 100, 100, [0, 100]),  # a tenth does
        (200, 100, 50, [0, 50, 100]),
        (210, 100, 50, [0, 50, 100, 150]),
        (205, 100, 200, [0]),  # with gaps only what the next window would hold counts
        (215, 100, 200, [0, 200]),
        (300, 100, 200, [0, 200]),
    ],
)
def test_segment_starts(n, length, hop, starts):
    found = segment_starts(n, length, hop)
    assert found.dtype == np.int64
    assert found.tolist() == starts


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 400), st.integers(1, 500))
def test_segments_hold_all_but_less_than_a_tenth_of_one(n, length, hop):
    starts = segment_starts(n, length, hop)
    assert (np.diff(starts) == hop).all() and starts[0] == 0
    full = [s for s in range(0, n, hop) if s + length <= n]
    assert starts[: len(full)].tolist() == full
    assert len(starts) <= len(full) + 1
    held = np.zeros(n, bool)
    for s in starts:
        held[s : s + length] = True
    wanted = np.zeros(n, bool)
    for s in range(0, n, hop):
        wanted[s : s + length] = True
    assert (wanted & ~held).sum() * 10 < length


def test_a_tail_that_is_dropped_leaves_full_windows_alone():
    for n in range(1, 400):
        kept, dropped = segment_starts(n, 100, 50), segment_starts(n, 100, 50, "drop")
        full = [start for start in kept.tolist() if start + 100 <= n]
        assert dropped.tolist() == (full or [0])


@pytest.mark.parametrize(
    ("pad", "filled"),
    [("silence", "abc0000"), ("repeat", "abcabca"), ("reflect", "abcbabc")],
)
def test_the_last_window_is_filled_up(pad, filled):
    wave = np.frombuffer(b"xyzabc", "u1").copy()
    whole = fill_up(wave, 3, 7, pad)
    assert whole.tobytes().replace(b"\0", b"0") == b"xyz" + filled.encode()
    assert fill_up(wave, 3, 3, pad) is wave
    lone = fill_up(wave[:1], 0, 3, pad).tobytes()
    assert lone == (b"x\0\0" if pad == "silence" else b"xxx")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 100))
def test_reflection_is_numpys(n, missing):
    wave = np.random.default_rng(n).standard_normal(n)
    whole = fill_up(wave, 0, n + missing, "reflect")
    np.testing.assert_array_equal(whole, np.pad(wave, (0, missing), "reflect"))


def test_a_window_or_hop_of_nothing_is_refused():
    for length, hop in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1 sample"):
            segment_starts(10, length, hop)


@pytest.mark.parametrize("heard", [1, 511, 512, 1024, 5000, 15999])
@pytest.mark.parametrize("count", [1, 3])
def test_the_silence_that_fills_a_segment_has_the_frames_of_silence(heard: int, count: int) -> None:
    """A last sample of 10^-18 has no FFT left out, and lies 80 dB below the floor."""
    wave = np.random.default_rng(heard).normal(0, 0.1, 16000 * (count - 1) + heard).astype("f4")
    starts = np.arange(count) * 16000
    filled = fill_up(wave, int(starts[-1]), 16000, "silence")
    whole = filled.copy()
    whole[-1] = 1e-18
    mel = log_mel(filled, starts, 16000, MelSettings())
    np.testing.assert_array_equal(mel, log_mel(whole, starts, 16000, MelSettings()))
    assert (mel[-1, :, -1] == -100).all() == (heard < 15999 - 1024)
