"""A paired comparison over users: whether a difference in a metric is more than these users' chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
_DECIMALS = 12


@dataclass(frozen=True)
class Paired:
    """How one line's metric differs from the baseline's, user by user.

    Attributes:
        users: Number of users, n.
        effect: Mean over users of d = metric − baseline's metric.
        low: Lower end of the effect's confidence interval, from Student's t with n − 1 degrees of freedom.
        high: Its upper end.
        confidence: Of that interval.
        t_p: Two-sided p-value of the paired t-test.
        wilcoxon_p: Two-sided p-value of Wilcoxon's signed-rank test, users without a difference left out.
        better: Users with d > 0.
        worse: Users with d < 0.
    """

    users: int
    effect: float
    low: float
    high: float
    confidence: float
    t_p: float
    wilcoxon_p: float
    better: int
    worse: int


def paired(ours: NDArray[np.float64], baseline: NDArray[np.float64], confidence: float = CONFIDENCE) -> Paired:
    """Compare two lines over the same users.

    Args:
        ours: One value for each user, float64 [n].
        baseline: The baseline's values for the same users, float64 [n].
        confidence: Of the effect's interval.

    Returns:
        The comparison. Where all differences are equal there is nothing random: p is 1 if they are zero, else 0 for
        the t-test. A single user allows no test: interval and p are NaN.
    """
    # Averages over seeds of the same values can differ in their last bit: without rounding these would be no ties.
    difference = np.round(np.asarray(ours, np.float64) - np.asarray(baseline, np.float64), _DECIMALS)
    users, effect = len(difference), float(difference.mean())
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    low = high = t_p = wilcoxon_p = math.nan
    if users > 1:
        spread = float(difference.std(ddof=1)) / math.sqrt(users)
        reach = float(stats.t.ppf((1 + confidence) / 2, users - 1)) * spread
        low, high = effect - reach, effect + reach
        if np.ptp(difference) == 0:
            t_p = 1.0 if effect == 0 else 0.0
        else:
            t_p = float(stats.ttest_1samp(difference, 0.0).pvalue)
        moved = difference[difference != 0]
        wilcoxon_p = float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0
    return Paired(users, effect, low, high, confidence, t_p, wilcoxon_p, better, worse)
