"""Data for several runs, each read once while runs that follow each other share it."""

from __future__ import annotations

from pathlib import Path

from training.config import RunConfig
from training.data.dataset import Dataset
from training.data.load import load_dataset


class DataSource:
    """Reads data sets, and keeps the last.

    Args:
        data_dir: Where data sets are.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir
        self._kept: tuple[str, Dataset, str] | None = None

    def of(self, config: RunConfig) -> tuple[Dataset, str]:
        """Return a run's data set and its fingerprint.

        Raises:
            DvibError: There is no such data set, or it cannot be read that way.
        """
        key = f"{config.dataset} {config.data.model_dump_json()}"
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # features are large: the old go before the new come
            dataset = load_dataset(config.dataset, self._data_dir, config.data)
            self._kept = key, dataset, dataset.fingerprint()
        return self._kept[1], self._kept[2]
