"""Log-mel spectrograms on a GPU, or whatever else torch calls a device.

Shapes: `n` samples of a recording, `S` segments, `T` frames, `F` FFT bins, `M` mel bands.
"""

import numpy as np

from shards.errors import UserError
from shards.mel import FLOOR, FLOOR_DB, MelSettings

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
    from torchaudio.transforms import Spectrogram

    mel = np.empty((len(starts), settings.n_mels, settings.frames(length)), np.float32)
    samples = torch.tensor(wave, device=device)
    triangles = torch.tensor(settings.filterbank, device=device)
    power = Spectrogram(settings.n_fft, hop_length=settings.hop_length, pad_mode="constant")
    power = power.to(device)
    for first in range(0, len(starts), BATCH):
        run = starts[first : first + BATCH].tolist()
        segments = torch.stack([samples[start : start + length] for start in run])
        found = (triangles @ power(segments))[..., : mel.shape[2]]
        found = found.clamp_(min=FLOOR).log10_().mul_(10).clamp_(min=FLOOR_DB)
        mel[first : first + BATCH] = found.cpu().numpy()
    return mel
