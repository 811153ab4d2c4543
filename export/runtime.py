"""ONNX Runtime, its errors and providers. Needs neither torch nor training.

Whoever uses ONNX Runtime imports it from here.
"""

from __future__ import annotations

import os

# As it is loaded it would start a thread, which no fork takes along, and report to its makers what is run here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

__all__ = ["CPU", "CUDA", "GRAPH_ERRORS", "onnxruntime"]

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
