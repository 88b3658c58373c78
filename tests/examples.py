"""Run an example as its user does, in this process: torch and what draws are imported once."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from ignite_prune import SparsityWarning
from ignite_prune.handlers import RunWarning

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str, *arguments: Any, ok: bool = True) -> str:
    """Return what ``python examples/<name>.py <arguments>`` prints; a wrong exit status fails."""
    path, printed, status = EXAMPLES / f"{name}.py", io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [str(path), *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": "110"}),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RunWarning)
        warnings.simplefilter("error", SparsityWarning)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    assert (status == 0) is ok, printed.getvalue()
    return printed.getvalue()
