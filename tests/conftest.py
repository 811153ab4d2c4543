from __future__ import annotations

from hypothesis import settings

import training  # noqa: F401  # settles OpenMP's waiting before any test module can load torch

# The same examples in every run, no time limit on a loaded machine, and no example database in the working tree.
settings.register_profile("dvib", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("dvib")
