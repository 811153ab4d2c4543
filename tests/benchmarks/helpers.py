"""Bundles that can be run, and how tests start ``dvib-bench``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from export import bundle
from export.manifest import Manifest
from tests.helpers_bundle import Content, make_content, seal, write_bundle

Bench = Callable[..., int]
"""Runs ``dvib-bench`` with these arguments; returns its exit code."""


def scoring_graph(content: Content) -> bytes:
    """Return a serialised graph ``users`` int64 [B] → ``scores`` float32 [B, I]."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "users"], ["vectors"], axis=0),
            helper.make_node("MatMul", ["vectors", "items"], ["scores"]),
        ],
        "scores",
        [helper.make_tensor_value_info("users", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", len(content.items)])],
        [
            numpy_helper.from_array(content.users, "table"),
            numpy_helper.from_array(np.ascontiguousarray(content.items.T), "items"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def make_bundle(folder: Path, *, variant: str = "none", graph: bool = True, fingerprint: str = "", **size: int) -> Path:
    """Write a bundle whose ``model.onnx`` can be run, unless ``graph`` is false."""
    content = make_content(**size)
    write_bundle(folder, content, variant=variant)
    if graph:
        (folder / bundle.MODEL_ONNX).write_bytes(scoring_graph(content))
        seal(folder, content, variant=variant)
    if fingerprint:
        place = folder / bundle.MANIFEST
        document = json.loads(place.read_text("utf-8"))
        document["dataset"]["fingerprint"] = fingerprint
        document["version"] = bundle.content_version(Manifest.model_validate(document))
        place.write_text(json.dumps(document), "utf-8")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document
