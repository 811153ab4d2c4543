"""One process that exports, verifies or loads, and says how long that took and how much memory; see ``export_cost``."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.probe import answer
from training.common.memory import peak_bytes


def prepare(shape: str, model: str, variant: Any, preset: Any, checkpoint: str) -> dict[str, Any]:
    """Write a checkpoint of a synthetic shape with initial values: what exporting costs does not depend on training."""
    from benchmarks.shapes import synthetic_dataset
    from training.build import build_objective
    from training.checkpoint import CheckpointInfo, DatasetInfo, save_checkpoint, save_dataset, versions
    from training.config import build_config

    dataset = synthetic_dataset(shape)
    config = build_config(model_name=model, dataset=dataset.name, variant=variant, preset=preset)
    objective = build_objective(config, dataset)
    info = CheckpointInfo(
        config=config, dataset=DatasetInfo.of(dataset), epoch=0, metrics={}, history=[], versions=versions()
    )
    with tempfile.TemporaryDirectory(prefix="dvib-export-") as place:
        save_dataset(dataset, Path(place) / "data")
        learned = objective.model.state_dict()
        save_checkpoint(Path(checkpoint), info, learned, objective.own_parameters(), Path(place) / "data")
    return {}


def export(checkpoint: str, bundle: str) -> dict[str, Any]:
    """Build a bundle of a checkpoint; ``seconds`` begin with reading the checkpoint and end with a bundle in place."""
    from export.build import build_bundle
    from training.checkpoint import load_checkpoint

    stages: dict[str, float] = {}
    before, started = peak_bytes(), time.perf_counter()
    current, began = "reading the checkpoint", started

    def enter(stage: str) -> None:
        nonlocal current, began
        now = time.perf_counter()
        stages[current] = stages.get(current, 0.0) + now - began
        current, began = stage, now

    manifest, certificate = build_bundle(load_checkpoint(Path(checkpoint)), Path(bundle), on_stage=enter)
    enter("")
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_bytes(),
        "peak_before_bytes": before,
        "stages": stages,
        "bundle_bytes": sum(entry.size for entry in manifest.files.values()),
        "graph_bytes": certificate.exported.size,
        "parity": {path: entry.max_relative_error for path, entry in certificate.parity.items()},
    }


def graph(shape: str, model: str, variant: Any, preset: Any, bundle: str) -> dict[str, Any]:
    """Write the un-frozen graph of a model with initial values, and nothing else, into a folder."""
    from benchmarks.shapes import synthetic_dataset
    from export.artefacts import full_graph_onnx
    from export.bundle import MODEL_ONNX
    from training.build import build_model
    from training.config import build_config

    dataset = synthetic_dataset(shape)
    built = build_model(build_config(model_name=model, dataset=dataset.name, variant=variant, preset=preset), dataset)
    started = time.perf_counter()
    data = full_graph_onnx(built.eval())
    seconds = time.perf_counter() - started
    Path(bundle).mkdir()
    (Path(bundle) / MODEL_ONNX).write_bytes(data)
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "graph_bytes": len(data)}


def verify(bundle: str) -> dict[str, Any]:
    """Verify a bundle."""
    from export.verify import verify_bundle

    started = time.perf_counter()
    checks = verify_bundle(Path(bundle))
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "passed": all(check.passed is not False for check in checks),
    }


def load(bundle: str, optimised: bool) -> dict[str, Any]:
    """Load ``model.onnx`` in ONNX Runtime, optimised (and folded where that is worth it) or not; score one user."""
    import numpy as np

    from export.bundle import MODEL_ONNX
    from export.parity import session

    started = time.perf_counter()
    opened = session((Path(bundle) / MODEL_ONNX).read_bytes(), optimised=optimised)
    loaded = time.perf_counter()
    opened.run(["scores"], {"users": np.zeros(1, dtype=np.int64)})
    called = time.perf_counter()
    return {"seconds": loaded - started, "first_call_seconds": called - loaded, "peak_bytes": peak_bytes()}


def main() -> None:
    """Run the step that the command line names, with its arguments as JSON, and write its result as the last line."""
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        "prepare": prepare,
        "export": export,
        "graph": graph,
        "verify": verify,
        "load": load,
    }
    answer(steps[sys.argv[1]], sys.argv[2])


if __name__ == "__main__":
    main()
