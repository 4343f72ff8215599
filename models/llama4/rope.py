"""Rotary position embedding, in both of Llama's pairings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.config import ModelConfig, RopeScaling


class RotaryEmbedding:
    """Rotates queries and keys by their absolute positions.

    Args:
        config: head size, base, scaling and pairing.
        device: where the frequencies live.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self._interleaved = config.rope_interleaved
        self._frequencies = inverse_frequencies(config).to(device)

    def angles(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos, sin), each [T, 1, C/2] float32, for absolute positions [T] int64. Shared by every layer."""
        angles = positions_T.to(torch.float32)[:, None, None] * self._frequencies
        return torch.cos(angles), torch.sin(angles)

    def rotate(self, x_THC: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Return [T, H, C] rotated in float32 and cast back to its dtype."""
        cos, sin = angles
        x32 = x_THC.float()
        if self._interleaved:
            pairs = x32.unflatten(-1, (-1, 2))
            a, b = pairs[..., 0], pairs[..., 1]
            rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        else:
            a, b = x32.chunk(2, dim=-1)
            rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return rotated.to(x_THC.dtype)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return the rotation per position of each pair, [C/2] float32.

    Source: Su et al. 2021; scaling as in Llama 3.1 (`apply_scaling` in Meta's llama-models).
    """
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    frequencies = 1.0 / (config.rope_theta**exponents)
    return frequencies if config.rope_scaling is None else _scale(frequencies, config.rope_scaling)


def _scale(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide low frequencies by the factor, keep high ones, blend in between."""
    wavelengths = 2 * math.pi / frequencies
    low_wavelength = scaling.original_max_positions / scaling.low_freq_factor
    high_wavelength = scaling.original_max_positions / scaling.high_freq_factor
    band = scaling.high_freq_factor - scaling.low_freq_factor
    # Scout has high == low: the band between is empty, and dividing by its width would make NaN.
    smooth = (scaling.original_max_positions / wavelengths - scaling.low_freq_factor) / band if band else 0.0
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > low_wavelength, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < high_wavelength, frequencies, scaled)
