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

    def turns(self, positions_T: Tensor) -> Tensor:
        """Return cos + i sin of each pair's angle, [T, 1, C/2] complex64, for absolute positions [T] int64.

        Shared by every layer.
        """
        angles = positions_T.to(torch.float32)[:, None, None] * self._frequencies
        return torch.polar(torch.ones_like(angles), angles)

    def rotate(self, x_THC: Tensor, turns: Tensor) -> Tensor:
        """Return [T, H, C] rotated in float32 and cast back to its dtype."""
        x32_THC = x_THC.float()
        if self._interleaved:
            # A pair is a complex number, and to rotate it one product: ten times faster than pair by pair on a CPU.
            pairs = torch.view_as_complex(x32_THC.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * turns).flatten(-2).to(x_THC.dtype)
        a, b = x32_THC.chunk(2, dim=-1)
        cos, sin = turns.real, turns.imag
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x_THC.dtype)


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
