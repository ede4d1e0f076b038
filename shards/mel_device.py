"""Log-mel spectrograms on a GPU, or whatever else torch calls a device.

Shapes: `n` samples of a recording, `S` segments, `T` frames, `F` FFT bins, `M` mel bands.
"""

from typing import TYPE_CHECKING

import numpy as np

from shards.errors import UserError
from shards.mel import FLOOR, FLOOR_DB, MelSettings, hann

if TYPE_CHECKING:
    import torch

BATCH = 64  # segments at once: of 30 s they take 1.5 GB


def check_device(device: str) -> None:
    """Raise a UserError unless torch can compute on `device` here."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--device={device}: cannot be used here ({reason}); leave it out to use the CPU"
        ) from None


def log_mel_on(
    device: str, wave: np.ndarray, starts: np.ndarray, length: int, settings: MelSettings
) -> np.ndarray:
    """`shards.mel.log_mel`, to rounding: (n,) float32 to (S, M, T) float32."""
    import torch

    mel = np.empty((len(starts), settings.n_mels, settings.frames(length)), np.float32)
    samples = torch.tensor(wave, device=device)
    window = torch.tensor(hann(settings.n_fft), device=device)
    triangles = torch.tensor(settings.filterbank, device=device)
    for first in range(0, len(starts), BATCH):
        run = starts[first : first + BATCH].tolist()
        segments = torch.stack([samples[start : start + length] for start in run])
        power = triangles @ spectrum_power(segments, window, settings)[..., : mel.shape[2]]
        found = power.clamp_(min=FLOOR).log10_().mul_(10).clamp_(min=FLOOR_DB)
        mel[first : first + BATCH] = found.cpu().numpy()
    return mel


def spectrum_power(
    segments: "torch.Tensor", window: "torch.Tensor", settings: MelSettings
) -> "torch.Tensor":
    """(S, N) to (S, F, 1 + N // hop_length): re^2 + im^2 of centred frames, zeros around."""
    import torch

    spectrum = torch.stft(
        segments,
        settings.n_fft,
        settings.hop_length,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return torch.view_as_real(spectrum).square().sum(dim=-1)
