"""ONNX Runtime's errors and providers. Needs neither torch nor training."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
GRAPH_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
"""What ONNX Runtime raises for a graph that it cannot load or run."""
