"""Names that configuration and command lines share."""

from __future__ import annotations

from typing import Literal

Variant = Literal["none", "constant", "adaptive"]
"""The plain model, DVIB_c (paper, Eq. 11) or DVIB_a (Eq. 12)."""

DvibVariant = Literal["constant", "adaptive"]
"""The variants that have a second pass."""

Preset = Literal["tuned", "paper", "reference"]
"""The mathematics as published with weights chosen on validation data, as published, or as the authors' code has it."""

FeatureScaling = Literal["none", "global", "per_dimension"]
"""What a model sees of the features: see ``training.scaling``."""
