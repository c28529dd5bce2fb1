"""Random numbers by counter: each number is a function of what it is for, never of what was drawn before it.

The hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on int64 tensors, whose products wrap. Integer arithmetic
is the same on every machine and device, so an image gets the same numbers in any batch, in any order.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of ``value``."""
    value &= _MASK
    return value - 2**64 if value >> 63 else value


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 of any shape to int64, a bijection."""
    bits = (bits ^ _shift(bits, 30)) * _signed(_FACTORS[0])
    bits = (bits ^ _shift(bits, 27)) * _signed(_FACTORS[1])
    return bits ^ _shift(bits, 31)


def mix_int(value: int) -> int:
    """``mix`` for one Python integer, taken modulo 2**64; the result is unsigned."""
    value &= _MASK
    value = (value ^ (value >> 30)) * _FACTORS[0] & _MASK
    value = (value ^ (value >> 27)) * _FACTORS[1] & _MASK
    return value ^ (value >> 31)


def _text_key(text: str) -> int:
    """FNV-1a with 64 bits: unlike ``hash``, equal in every process."""
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = (key ^ byte) * 0x100000001B3 & _MASK
    return key


class Draws:
    """Random numbers for N images, one independent stream per (seed, corruption, severity, index, purpose)."""

    def __init__(self, seed: int, corruption: str, severity: int, index: Tensor) -> None:
        """``index``: (N,) int64, each image's number in its dataset; its device is where the numbers are made."""
        self.base = mix_int(
            mix_int(operator.index(seed) + _GOLDEN) ^ mix_int(_text_key(corruption) + severity * _GOLDEN)
        )
        self.images = mix(index + _signed(_GOLDEN))

    def bits(self, purpose: str, *shape: int) -> Tensor:
        """(N, *shape) int64, uniform over all 64 bits; ``purpose`` names the stream."""
        keys = mix(self.images + _signed(mix_int(self.base ^ _text_key(purpose))))
        counter = torch.arange(1, math.prod(shape) + 1, device=keys.device) * _signed(_GOLDEN)
        return mix(keys[:, None] + counter).view(-1, *shape)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(N, *shape) float64, uniform on the multiples of 2**-53 in [0, 1)."""
        return _shift(self.bits(purpose, *shape), 11).to(torch.float64) * 2.0**-53

    def below(self, purpose: str, bound: int | Tensor, *shape: int) -> Tensor:
        """(N, *shape) int64, uniform on 0 .. bound - 1, by scaling a uniform number; ``bound`` is below 2**30."""
        return (self.uniform(purpose, *shape) * bound).long()

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(N, *shape) float64, standard normal by Box and Muller: both numbers of each pair are used."""
        count = math.prod(shape)
        radius, angle = self.uniform(purpose, 2, (count + 1) // 2).unbind(1)
        radius = ((1 - radius).log() * -2).sqrt()  # 1 - u is in (0, 1]
        angle = angle * (2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].reshape(-1, *shape)
