"""Mixing against the physics of sound: powers add, and the ratio is what is heard of each."""

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, chisquare, kstest
from test_augment import augment, batch, noise_like

from shards.errors import UserError
from toolkit.config import parse
from toolkit.mixing import hearing_weights, loudness_weight, mix, partners

RATE, HOP = 16000, 512


def tone(hertz: float, amplitude: float) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)


def decibels(wave: np.ndarray) -> torch.Tensor:
    """(M, T) as stored."""
    power = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=2048, hop_length=HOP)
    return torch.from_numpy(10 * np.log10(np.maximum(power, 1e-10)).astype(np.float32))


def mixed(kind, first, second, ratio):
    """The first of two samples mixed with the second, every band heard alike."""
    ranks = torch.tensor([[0, 1], [1, 0]])
    x, shares = mix(
        kind, torch.stack([first, second]), torch.tensor([0, 1]), torch.eye(3),
        torch.tensor([ratio, 1.0]), ranks, torch.ones(len(first)),
    )  # fmt: skip
    torch.testing.assert_close(x[1], second)  # its own ratio is 1
    np.testing.assert_allclose(shares, [[ratio, 1 - ratio, 0], [0, 1, 0]], atol=1e-6)
    return x[0]


def test_two_tones_mix_as_their_sounds_do():
    """Power 0.3 of the one and 0.7 of the other: the spectrogram of the waves added so."""
    low, high = tone(440, 0.3), tone(3000, 0.1)
    found = mixed("mixup", decibels(low), decibels(high), 0.3)
    sound = decibels(np.sqrt(0.3) * low + np.sqrt(0.7) * high)
    found, sound = found[:, 3:-3], sound[:, 3:-3]  # a tone that begins or ends is a click
    loud = sound > sound.max() - 40  # below, leakage of both interferes
    assert all(loud[decibels(wave)[:, 10].argmax()].all() for wave in (low, high))
    torch.testing.assert_close(found[loud], sound[loud], atol=0.1, rtol=0)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("louder", [-30.0, 0.0, 12.0])
def test_the_ratio_is_what_is_heard_of_each(ratio, louder):
    """However much louder one tone was, its amplitude in the mix is ratio / (1 - ratio) times."""
    low, high = decibels(tone(440, 0.1 * 10 ** (louder / 20))), decibels(tone(3000, 0.1))
    found = mixed("between_class", low, high, ratio)
    levels = [
        10 * np.log10((10 ** (x.numpy() / 10)).sum(0).max()) + float((found - x)[band, 10])
        for x, band in ((low, low[:, 10].argmax()), (high, high[:, 10].argmax()))
    ]
    heard = levels[0] - levels[1]
    assert heard == pytest.approx(20 * np.log10(ratio / (1 - ratio)), abs=0.05)
    one, other = (loudness_weight(torch.tensor([r]), torch.tensor([d]))
                  for r, d in ((ratio, louder), (1 - ratio, -louder)))  # fmt: skip
    assert float(one + other) == pytest.approx(1, abs=1e-6)


def test_silence_and_the_ends_of_the_ratio():
    sound, silence = noise_like(1, (8, 20))[0].float(), torch.full((8, 20), -100.0)
    for kind in ("mixup", "between_class"):
        torch.testing.assert_close(mixed(kind, sound, silence, 1.0), sound)
        torch.testing.assert_close(mixed(kind, sound, silence, 0.0), silence)
        assert mixed(kind, silence, sound, 0.5).isfinite().all()
        torch.testing.assert_close(mixed(kind, sound, sound, 0.4), sound)


def test_hearing_is_a_weighting_of_the_bands_powers():
    mel = {"fmin": 50.0, "fmax": 11000.0}
    edges = librosa.mel_frequencies(66, fmin=50, fmax=11000)
    expected = 10 ** (librosa.A_weighting(edges[1:-1]) / 10) * (edges[2:] - edges[:-2])
    np.testing.assert_allclose(hearing_weights(mel, 64), expected / expected.max(), rtol=1e-3)
    assert (hearing_weights({"fmin": None, "fmax": None}, 5) == 1).all()


def random_ranks(size: int, group: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((size, group)).argsort(1))


def test_a_partner_is_any_other_of_the_group():
    found = partners(torch.zeros(4000, dtype=torch.int64), random_ranks(4000, 4), False).numpy()
    own = np.arange(4000)
    assert (found // 4 == own // 4).all() and (found != own).all()
    assert chisquare(np.bincount((found - own) % 4)[1:]).pvalue > 1e-3


def test_between_classes_a_partner_is_of_another_class_or_oneself():
    y = torch.from_numpy(np.random.default_rng(1).integers(0, 2, 3000))
    found = partners(y, random_ranks(3000, 4), True)
    one_class = (y.view(-1, 4) == y.view(-1, 4)[:, :1]).all(1).repeat_interleave(4)
    assert 0.05 < one_class.float().mean() < 0.3
    assert (y[found] != y)[~one_class].all()
    assert (found == torch.arange(3000))[one_class].all()
    assert (found // 4 == torch.arange(3000) // 4).all()


@pytest.mark.parametrize("alpha, share", [(1.0, 1.0), (0.4, 1.0), (5.0, 0.25)])
def test_ratios_are_drawn_from_beta(alpha, share):
    chain = augment((1, 1), mix="mixup", mix_alpha=alpha, mix_share=share)
    # A group of four consecutive places has classes 0 1 2 0, so a partner may be of one's class.
    labels = torch.arange(4000) % 4
    y = chain.decibels(batch(4000, (1, 1))._replace(y=labels % 3), 1).y
    torch.testing.assert_close(y.sum(1), torch.ones(4000))
    own = y[(labels == 1) | (labels == 2)]
    own = own[range(2000), labels[(labels == 1) | (labels == 2)]].double().numpy()
    assert (own < 1).mean() == pytest.approx(share, abs=4 * np.sqrt(0.25 / 2000))
    assert kstest(own[own < 1], beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_loss_of_shares_is_the_shares_of_losses():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    a, b, r = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2]), torch.tensor(0.3)
    shares = r * F.one_hot(a, 3) + (1 - r) * F.one_hot(b, 3)
    one, other = (F.cross_entropy(logits, y, label_smoothing=0.1) for y in (a, b))
    soft = F.cross_entropy(logits, shares, label_smoothing=0.1)
    torch.testing.assert_close(soft, r * one + (1 - r) * other)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"augment": {"mix": "mixup"}, "model": {"norm_batch": 1}}, "raise model.norm_batch"),
        ({"augment": {"mix_share": 1.5}}, "augment.mix_share=1.5: at most 1"),
        ({"augment": {"mix": "both"}}, "one of none, mixup, between_class"),
        ({"augment": {"eq_bands": 1}}, "augment.eq_bands=1: at least 2"),
    ],
)
def test_what_cannot_be_is_refused(sections, message):
    model = {"name": "cnn_tiny", **sections.pop("model", {})}
    with pytest.raises(UserError, match=message):
        parse({"run": {"name": "a"}, "data": {"shards": "s"}, "model": model, **sections})
