"""Random streams that are functions of seed, purpose and epoch.

No generator state is carried from one epoch to the next, so nothing of it has to be saved for resuming, evaluation
cannot disturb it, and the noise of DVIB cannot shift the batches of the model it wraps.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal["initial", "net_phi", "batches", "negatives", "noise", "model"]


def stream(seed: int, purpose: Purpose, epoch: int = 0, device: torch.device | None = None) -> torch.Generator:
    """Return a fresh generator for one purpose of one epoch.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for; different purposes are independent.
        epoch: Epoch number from 1, or 0 for what happens once.
        device: Where the numbers are drawn; the CPU by default.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    generator = torch.Generator(device or torch.device("cpu"))
    return generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
