"""shards.segment against arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
