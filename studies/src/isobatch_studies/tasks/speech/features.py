"""Log-mel features by torch.stft: a window of 25 ms every 10 ms, at any sampling rate."""

from functools import cache

import torch

from isobatch.errors import InputError

WINDOW, HOP = 0.025, 0.010
LOWEST, HIGHEST = 60.0, 7600.0
_FLOOR = 1e-6


def log_mel(wave: torch.Tensor, rate: int, bands: int = 32) -> torch.Tensor:
    r"""Return the log-mel features of a waveform, each band with mean 0 and deviation 1 over the utterance.

    x[t, m] = log(floor + sum_f W[m, f] |STFT(wave)[f, t]|**2), W triangles evenly spaced in
    mel(f) = 2595 log10(1 + f/700).

    Args:
        wave: samples, shape (samples,).
        rate: Hz.
        bands: mel bands.

    Returns:
        float32 tensor of shape (1 + samples // hop, bands), 100 frames a second.

    Raises:
        InputError: fewer samples than one window, or a rate too low for the bands.

    Example:
        >>> log_mel(torch.randn(16000), 16000).shape
        torch.Size([101, 32])
    """
    size, hop = round(WINDOW * rate), round(HOP * rate)
    if wave.ndim != 1 or len(wave) < size:
        raise InputError(f"a waveform of shape {tuple(wave.shape)} must be one channel of at least {size} samples")
    spectrum = torch.stft(
        wave.float(), size, hop, window=torch.hann_window(size), center=True, pad_mode="constant", return_complex=True
    )
    energy = mel_weights(rate, size, bands) @ spectrum.abs().square()
    x = torch.log(_FLOOR * energy.max().clamp_min(1e-12) + energy).T
    return (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-3)


@cache
def mel_weights(rate: int, size: int, bands: int) -> torch.Tensor:
    """Return the triangular mel filters.

    Args:
        rate: Hz.
        size: samples of the transform.
        bands: filters.

    Returns:
        float32 tensor of shape (bands, size // 2 + 1).

    Raises:
        InputError: a band that holds no frequency of the transform.
    """
    top = min(HIGHEST, rate / 2)
    edges = torch.linspace(_mel(LOWEST), _mel(top), bands + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size
    rise = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    fall = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    weights = torch.minimum(rise, fall).clamp_min(0)
    if not (weights.sum(1) > 0).all():
        raise InputError(f"{bands} mel bands are too many for windows of {size} samples at {rate} Hz; use fewer")
    return weights.float()


def _mel(hertz: float) -> float:
    return float(2595 * torch.log10(torch.tensor(1 + hertz / 700, dtype=torch.float64)))
