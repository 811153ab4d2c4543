"""Data sets: readers, splits and features, all ending in one immutable :class:`training.data.dataset.Dataset`.

``training.data.load.load_dataset`` is the way in. Nothing is imported here, so that the value itself stays light: the
readers load polars, and scikit-learn only where features are derived.
"""
