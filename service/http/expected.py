"""What calls of an engine are expected to take."""

from __future__ import annotations

import math

_NEWS, _BAD_NEWS = 0.2, 0.05
"""Weights of the latest call in what one request usually takes: where it was shorter, where it was longer."""
_SIZES = 3
_SMALLEST_S = 1e-9


class Expected:
    """What calls usually take, by their size, and by how much one has exceeded that of late.

    Both, and not the mean of all: one slow request among many fast ones is one that the event loop waits for, but it
    does not make many more slow ones of a call of many. And not one number for all sizes: a call costs something
    however few requests it answers, so that what a lone one takes, times their number, is several times what many take
    together.

    Calls of 1 to 3, of 4 to 15 and of more requests are of a size. Where a size is not known, smaller ones say how long
    it takes at most: many never take longer each than few.

    Attributes:
        surprise: Seconds by which the call that exceeded most has exceeded what was expected; forgotten with time.
    """

    def __init__(self) -> None:
        self._usual = [math.inf] * _SIZES
        self.surprise = 0.0

    def seconds(self, count: int) -> float:
        """Return what a call of so many requests, at least one, usually takes; infinite where nobody knows."""
        return count * self._each(_size(count))

    def most(self, seconds: float) -> int:
        """Return how many requests a call can have that usually takes no longer."""
        for size in reversed(range(_SIZES)):
            count = int(seconds / self._each(size))
            if count >= 4**size:
                return count if size == _SIZES - 1 else min(count, 4 ** (size + 1) - 1)
        return 0

    def learn(self, count: int, seconds: float) -> None:
        """Note what a call of so many requests, at least one, has taken."""
        size, each = _size(count), max(_SMALLEST_S, seconds / count)
        surprise = max(0.0, seconds - self.seconds(count))
        self.surprise = max(surprise, self.surprise + _NEWS * (surprise - self.surprise))
        usual = self._usual[size]
        weight = _BAD_NEWS if each > usual else _NEWS
        self._usual[size] = each if usual == math.inf else usual + weight * (each - usual)

    def _each(self, size: int) -> float:
        return min(self._usual[: size + 1])


def _size(count: int) -> int:
    return min((count.bit_length() - 1) // 2, _SIZES - 1)
