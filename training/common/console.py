"""What the four command lines share: exit codes, one-line errors, dependency groups."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence

import typer
from typer.exceptions import TyperException

from training.common.errors import DvibError, MissingGroupError, printable

EXIT_DIFFERENT = 1
"""A verification or a benchmark says *different*."""
EXIT_BAD_INPUT = 2
"""The input cannot be used; one line on stderr says why."""
EXIT_VOID = 3
"""A benchmark whose own controls failed."""
EXIT_INCONCLUSIVE = 4
"""A benchmark that cannot decide."""
EXIT_INTERRUPTED = 130
"""Ctrl-C."""

# One module per distribution that stands for its group: cheap to look up, installed by nothing else.
_GROUP_MODULES: dict[str, tuple[str, ...]] = {
    "training": ("torch", "torch_geometric", "polars", "sklearn", "safetensors", "yaml", "rich"),
    "export": ("torch", "onnx", "onnxscript", "safetensors"),
    "service": ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client", "safetensors", "onnx"),
    "cpu": ("faiss", "onnxruntime"),
}
_EXCLUSIVE = (("faiss-cpu", "faiss-gpu"), ("onnxruntime", "onnxruntime-gpu"))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_groups(*groups: str) -> None:
    """Check that optional dependency groups are installed, without importing them.

    Args:
        groups: Names out of ``training``, ``export``, ``service`` and ``cpu`` (which the ``gpu`` group satisfies too).

    Raises:
        MissingGroupError: A module of a group is missing, or the ``cpu`` and ``gpu`` groups are installed together.
    """
    for cpu, gpu in _EXCLUSIVE:
        if _installed(cpu) and _installed(gpu):
            raise MissingGroupError(
                f"{cpu} and {gpu} are both installed and overwrite each other's files; "
                f"run: pip uninstall -y {cpu} {gpu} && pip install 'dvib[cpu]' (or 'dvib[gpu]')"
            )
    missing = {
        group: [name for name in _GROUP_MODULES[group] if importlib.util.find_spec(name) is None] for group in groups
    }
    lacking = [group for group in groups if missing[group]]
    if lacking:
        modules = dict.fromkeys(name for group in lacking for name in missing[group])
        alternative = " (with CUDA: gpu instead of cpu)" if "cpu" in lacking else ""
        raise MissingGroupError(
            f"this command needs {', '.join(modules)}; run: pip install 'dvib[{','.join(lacking)}]'{alternative}"
        )


def make_app(help_text: str) -> typer.Typer:
    """Return a typer application with the project's common behaviour."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def complain(program: str, message: str) -> int:
    """Write one line on stderr and return the exit code that goes with it."""
    sys.stderr.write(f"{program}: {printable(' '.join(message.split()))}\n")
    return EXIT_BAD_INPUT


def run(program: str, load_app: Callable[[], typer.Typer], arguments: Sequence[str] | None = None) -> None:
    """Run a command line and turn every expected error into one line and exit code 2.

    Args:
        program: The name shown in usage and errors.
        load_app: Imports and returns the application; called here so that a missing group is reported like any error.
        arguments: The command's arguments; ``sys.argv[1:]`` by default.
    """
    try:
        result = load_app()(args=arguments, prog_name=program, standalone_mode=False)
    except TyperException as error:
        # A choice that pydantic checks comes with pydantic's own prefix.
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        # Without any argument the help has been shown, and there is nothing to complain about.
        raise SystemExit(complain(program, f"{message}; see {program} --help") if message else EXIT_BAD_INPUT) from None
    except DvibError as error:
        raise SystemExit(complain(program, str(error))) from error
    except OSError as error:
        # What the file system refuses: a folder that is a file, no permission, no space.
        place = f"{error.filename}: " if error.filename is not None else ""
        raise SystemExit(complain(program, f"{place}{error.strerror or error}")) from error
    except MemoryError as error:
        raise SystemExit(complain(program, f"not enough memory: {error or 'allocation failed'}")) from error
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    if result == EXIT_INTERRUPTED:
        # typer itself turns Ctrl-C into this code.
        sys.stderr.write(f"{program}: interrupted\n")
    raise SystemExit(result if isinstance(result, int) else 0)
