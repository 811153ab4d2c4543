"""The models, one file each, and the one table that names them."""

from __future__ import annotations

from training.common.errors import ConfigError, nearest
from training.models.base import Recommender
from training.models.bm3 import BM3
from training.models.freedom import FREEDOM
from training.models.grcn import GRCN
from training.models.layergcn import LayerGCN
from training.models.mmgcn import MMGCN
from training.models.selfcf import SelfCF
from training.models.vbpr import VBPR

MODELS: dict[str, type[Recommender]] = {
    "vbpr": VBPR,
    "mmgcn": MMGCN,
    "grcn": GRCN,
    "bm3": BM3,
    "freedom": FREEDOM,
    "selfcf": SelfCF,
    "layergcn": LayerGCN,
}


def model_class(name: str) -> type[Recommender]:
    """Return the class of a model.

    Raises:
        ConfigError: There is no model of that name.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise ConfigError(f"no model '{name}'{nearest(name, MODELS)}") from None
