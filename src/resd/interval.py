"""The interval of a fraction."""

from __future__ import annotations

import math

_Z = 1.959964  # of a two-sided interval of 95 %


def wilson(passed: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction (Wilson 1927); also sound at 0 and 1.

    Of a mean of `number` values between 0 and 1, with `passed` as their sum, it is too wide rather
    than too narrow: values of 0 and 1 alone vary most.

    >>> [round(x, 3) for x in wilson(0, 10)]
    [0.0, 0.278]
    """
    share, z = passed / number, _Z * _Z / number
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)
