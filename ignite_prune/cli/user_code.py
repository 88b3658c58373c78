"""``module:callable``: code of the user's own that a command imports and runs."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.arguments import near
from ignite_prune.cli.failures import UserCodeError


def is_user_code(given: str) -> bool:
    """Return whether an argument names code, rather than a file."""
    return ":" in given and not Path(given).exists()


def imported(given: str) -> Any:
    """Return what ``module:name`` or ``file.py:name`` names; the module is imported from the working directory.

    Raises:
        ValueError: it is not of that form, or there is no such module or name.
        UserCodeError: the module raises.
    """
    module, _, name = given.rpartition(":")
    if not module or not name:
        raise ValueError(f"should be MODULE:CALLABLE, such as my_models:make_model, but given {given!r}")
    found = _guarded(given, lambda: _imported(module, given))
    for part in name.split("."):
        if part not in dir(found):
            raise ValueError(
                f"{module} has no {part!r}; {near(part, [n for n in dir(found) if not n.startswith('_')])}"
            )
        found = getattr(found, part)
    return found


def _imported(module: str, given: str) -> Any:
    if module.endswith(".py"):
        path = Path(module)
        if not path.is_file():
            raise ValueError(f"there is no file {module!r} (of {given!r})")
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        found = sys.modules[path.stem] = module_from_spec(spec)
        spec.loader.exec_module(found)
        return found
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"there is no module {module!r} (of {given!r}), here or installed") from None
        raise


def _guarded(given: str, run: Callable[[], Any]) -> Any:
    """Run code of the user's own; an error of it becomes a UserCodeError with its last line."""
    try:
        return run()
    except (ValueError, UserCodeError) as error:
        if str(error).startswith("there is no "):
            raise
        raise _as_error(given, error) from None
    except Exception as error:
        raise _as_error(given, error) from None


def _as_error(given: str, error: Exception) -> UserCodeError:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = "" if last is None else f" ({Path(last.filename).name}, line {last.lineno})"
    return UserCodeError(f"{given} raised {type(error).__name__}: {error}{where}")


def called(given: str) -> Any:
    """Return what a callable returns without arguments; of anything else itself."""
    found = imported(given)
    if isinstance(found, nn.Module) or not callable(found):
        return found
    return _guarded(given, found)


def model_and_inputs(given: str, example: str | None = None, state: Path | None = None) -> tuple[nn.Module, Any]:
    """Return a model, and example inputs if there are any.

    Args:
        given: ``module:callable`` that returns a model, or a model and its inputs.
        example: ``module:callable`` of example inputs.
        state: a file with a state_dict to load.

    Raises:
        ValueError: it returns something else, or the file does not fit.
    """
    found = called(given)
    model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{given} should return a torch.nn.Module, or (model, example_inputs), but returned {type(found)}"
        )
    if example is not None:
        inputs = called(example)
    if state is not None:
        from ignite_prune.report.checkpoint_file import read_file

        model.load_state_dict(read_file(state).state)
    return model, inputs


def inputs_needed(inputs: Any) -> Any:
    """Return example inputs.

    Raises:
        ValueError: there are none.
    """
    if inputs is None:
        raise ValueError("this needs example inputs: --example MODULE:CALLABLE, or a model callable that returns both")
    return inputs


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next((each.device for each in model.parameters()), torch.device("cpu"))
