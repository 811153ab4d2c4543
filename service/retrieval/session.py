"""An ONNX Runtime session that reads and writes the same buffers in every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from export.runtime import CPU, onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def open_session(
    graph: bytes, *, threads: int, tables: Mapping[str, NDArray[np.generic]] | None = None
) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    Args:
        graph: Serialised ONNX graph, checked before.
        threads: Of one call.
        tables: Constants that the graph says are kept elsewhere, in C order: a large one is not copied again and again
            on its way. The session reads them where they are, so they have to live as long as it does.

    Raises:
        export.runtime.GRAPH_ERRORS: ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The arena would keep the largest batch's buffers for good.
    options.enable_cpu_mem_arena = False
    # Threads that wait by spinning would take the event loop's processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if tables:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(table) for table in tables.values()]
        options.add_external_initializers(list(tables), values)
    return onnxruntime.InferenceSession(graph, options, providers=[CPU])


class Buffers:
    """A session's input and output, allocated once. Not for concurrent use.

    A large output that is allocated for each call costs a page fault for every 4 KiB of it; with a small one, half of
    the call's time goes into making it and naming it. Naming them anew whenever the number of rows changes, as it does
    from call to call, would cost as much again: each number of rows has its names.

    Args:
        session: With one input and one output, whose first axis is the number of rows.
        taken: The input of the most rows of one call.
        given: The output of as many rows.

    Attributes:
        providers: What the session really got to compute with, the one that is asked first at the front.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, taken: NDArray[np.generic], given: NDArray[np.generic]
    ) -> None:
        self._session = session
        self._run: Any = session.run_with_iobinding
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self._taken, self._given = taken, given
        self._bindings: dict[int, Any] = {}
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    def run(self, count: int) -> None:
        """Compute the first rows of the output from as many of the input.

        Raises:
            export.runtime.GRAPH_ERRORS: ONNX Runtime cannot run the graph.
        """
        self._run(self._bindings.get(count) or self._bind(count))

    def _bind(self, count: int) -> Any:
        binding = self._session.io_binding()
        taken, given = self._taken[:count], self._given[:count]
        binding.bind_input(self._input, "cpu", 0, taken.dtype, taken.shape, taken.ctypes.data)
        binding.bind_output(self._output, "cpu", 0, given.dtype, given.shape, given.ctypes.data)
        self._bindings[count] = binding
        return binding
