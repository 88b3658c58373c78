"""Errors of commands: one line and an exit code instead of a traceback."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from ignite_prune.cli.output import say

F = TypeVar("F", bound=Callable[..., Any])
MISTAKE, THEIRS, INTERRUPTED = 2, 1, 130


class UserCodeError(Exception):
    """Code of the user's own, which a command was asked to run, has raised."""


def guarded(command: F) -> F:
    """Return a command that reports errors in one line and ends with an exit code; warnings are one line too."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                result = command(*args, **kwargs)
            for each in {str(each.message): each for each in caught if issubclass(each.category, UserWarning)}:
                say(f"warning: {each}", "yellow")
            return result
        except UserCodeError as error:
            say(f"error: {error}", "red")
            raise typer.Exit(THEIRS) from None
        except KeyboardInterrupt:
            say("interrupted", "red")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, TypeError, ImportError, OSError, RuntimeError, AttributeError) as error:
            say(f"error: {error}", "red")
            raise typer.Exit(MISTAKE) from None

    return run  # type: ignore[return-value]
