"""Training: data, models, DVIB, trainer, evaluation and checkpoints.

Importing this package (every entry point does, before torch or FAISS can load) fixes the process's OpenMP behaviour.
"""

import os

# libgomp reads this once, when it is loaded. Its waiting threads otherwise spin, and beside a busy neighbour two
# spinning threads slow each other down by more than an order of magnitude.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
