"""Converts sampling rates by windowed-sinc interpolation: the filter vLLM uses by default (torchaudio's Resample).

y(j / new) = sum_i x(i / old) * h(i / old - j / new), h a sinc cut off just under the lower of the two Nyquist rates and
faded out by a Hann window over six zero crossings. Outputs whose times differ by a common period of both rates share
their weights, so that one strided convolution computes them all. After J. O. Smith, Digital Audio Resampling.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99
"""Cut-off relative to the Nyquist rate."""


def resample(samples: torch.Tensor, rate: int, target: int) -> torch.Tensor:
    """Samples [n] at `rate` Hz to [ceil(n * target / rate)] at `target` Hz, float32; silence is assumed around them."""
    if rate == target:
        return samples
    period = math.gcd(rate, target)
    old, new = rate // period, target // period
    weights, reach = _weights(old, new)
    padded = F.pad(samples, (reach, reach + old))
    by_phase = F.conv1d(padded[None, None], weights[:, None], stride=old)[0]
    return by_phase.T.reshape(-1)[: math.ceil(len(samples) * new / old)]


@lru_cache(maxsize=16)
def _weights(old: int, new: int) -> tuple[torch.Tensor, int]:
    """Filter of each of the `new` output phases, [new, taps], and how many inputs it reaches back."""
    cutoff = min(old, new) * _ROLLOFF
    reach = math.ceil(_ZERO_CROSSINGS * old / cutoff)
    inputs = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    outputs = (torch.arange(new) / new).double()  # rounded to float32 on the way, as torchaudio does
    crossings = ((inputs[None, :] - outputs[:, None]) * cutoff).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = torch.cos(crossings * (math.pi / _ZERO_CROSSINGS / 2)).square()
    return (torch.sinc(crossings) * window * (cutoff / old)).float(), reach
