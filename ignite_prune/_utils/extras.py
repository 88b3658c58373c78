"""Optional packages, which are imported where they are used."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "jinja2": "report",
    "matplotlib": "plot",
    "networkx": "graph",
    "numpy": "export",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pydantic": "recipe",
    "rich": "cli",
    "safetensors": "export",
    "tensorboard": "tensorboard",
    "tqdm": "progress",
    "typer": "cli",
    "yaml": "recipe",
}
"""The extra of ignite_prune that installs each optional package, by import name."""


def missing(package: str, what: str = "This", extra: str | None = None) -> ImportError:
    """Return the error for a package that is not installed, with the command that installs it."""
    extra = extra or EXTRAS[package]
    return ImportError(f"{what} needs {package}, which is not installed: pip install 'ignite-prune[{extra}]'")


def needed(package: str, what: str = "This", extra: str | None = None) -> None:
    """Raise ImportError, with the command that installs it, if an optional package is missing.

    Args:
        package: the package's import name.
        what: the subject of the error's text.
        extra: the extra that installs it; None: that of :data:`EXTRAS`.
    """
    if find_spec(package) is None:
        raise missing(package, what, extra)
