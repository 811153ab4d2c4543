"""What calls of an engine are expected to take."""

from __future__ import annotations

import math

_NEWS = 0.2
"""Weight of the latest call in what one request is expected to take, where it was shorter than that."""
_SIZES = 3
_SMALLEST_S = 1e-9


class Expected:
    """What calls are expected to take: the longest of late, by their size.

    Not the mean: one slow request among many fast ones is one that the event loop waits for. And not one number for
    all sizes: a call costs something however few requests it answers, so that what a lone one takes, times their
    number, is several times what many take together.

    Calls of 1 to 3, of 4 to 15 and of more requests are of a size. Where a size is not known, or its longest call was
    an exception, smaller ones say how long it takes at most: many never take longer each than few.
    """

    def __init__(self) -> None:
        self._longest = [math.inf] * _SIZES

    def seconds(self, count: int) -> float:
        """Return what a call of so many requests is expected to take; infinite where nobody knows."""
        return count * self._each(_size(count)) if count else 0.0

    def most(self, seconds: float) -> int:
        """Return how many requests a call can have that is expected to take no longer."""
        for size in reversed(range(_SIZES)):
            count = int(seconds / self._each(size))
            if count >= 4**size:
                return count if size == _SIZES - 1 else min(count, 4 ** (size + 1) - 1)
        return 0

    def learn(self, count: int, seconds: float) -> None:
        """Note what a call of so many requests, at least one, has taken."""
        size, each = _size(count), max(_SMALLEST_S, seconds / count)
        known = self._longest[size]
        self._longest[size] = known + _NEWS * (each - known) if each < known < math.inf else each

    def _each(self, size: int) -> float:
        return min(self._longest[: size + 1])


def _size(count: int) -> int:
    return min((count.bit_length() - 1) // 2, _SIZES - 1)
