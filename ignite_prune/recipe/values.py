"""Values that are neither numbers nor pieces: generators, dtypes, functions and tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune._utils.extras import needed

_INLINE = 10_000  # numbers
_DTYPES = {
    str(each).removeprefix("torch."): each
    for each in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
}


def read_generator(value: Any) -> torch.Generator | None:
    """Return a generator from its seed."""
    if value is None or isinstance(value, torch.Generator):
        return value
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError(f"should be the seed of a generator, a whole number in [-2**63, 2**63), but given {value!r}")
    return torch.Generator().manual_seed(value)


def read_number_key(value: Any) -> int | float:
    """Return a number that is a key: as text in JSON, which has no others."""
    if isinstance(value, str):
        try:
            return int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"should be a number, but given {value!r:.40}")
    return value


def read_dtype(value: Any) -> torch.dtype | None:
    """Return a dtype from its name."""
    if value is None or isinstance(value, torch.dtype):
        return value
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"there is no dtype {value!r}; {near(name, list(_DTYPES))}")
    return _DTYPES[name]


def read_function(value: Any) -> Callable[..., Any] | None:
    """Return the function ``module:name``: one of the user's own, in a module that has been imported.

    A recipe imports nothing, and names no function of Python's library or of torch, which might do anything.
    """
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str) or value.count(":") != 1:
        raise ValueError(f"should be a function as 'module:name', but given {value!r}")
    module, _, name = value.partition(":")
    if module.split(".")[0] in {*sys.stdlib_module_names, "torch"} - {"__main__"}:
        raise ValueError(f"a recipe names functions of your own modules, but given {value!r}")
    if module not in sys.modules:
        raise ValueError(f"the module {module!r} of {value!r} is not imported; import it before the recipe is loaded")
    found = vars(sys.modules[module]).get(name)
    if not isinstance(found, FunctionType) or found.__module__ != module:
        raise ValueError(f"the module {module!r} defines no function {name!r}")
    return found


def write_function(value: Callable[..., Any]) -> str:
    """Return ``module:name`` of a function at the top of a module.

    Raises:
        ValueError: it is a lambda, or within another function.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<object>")
    if module is None or "<" in name or "." in name:
        raise ValueError(f"the function {name} has no name that a file could give; define it at the top of a module")
    return f"{module}:{name}"


def read_tensors(value: Any) -> dict[str, Tensor] | None:
    """Return tensors by name: given as such, inline as ``{name: {dtype, values}}``, or ``{file: x.safetensors}``."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"should be tensors by parameter name, but given {value!r:.80}")
    if set(value) == {"file"} and isinstance(value["file"], str):
        needed("safetensors")
        from safetensors.torch import load_file

        try:
            return dict(load_file(value["file"]))
        except Exception as error:
            raise ValueError(f"the file {value['file']!r} cannot be read: {error}") from None
    return {str(name): _tensor(str(name), each) for name, each in value.items()}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    dtype: Any = torch.float32
    if isinstance(value, Mapping):
        if not {"values"} <= set(value) <= {"values", "dtype"}:
            raise ValueError(
                f"{name!r} should be numbers, or have values and dtype, but given {sorted(map(str, value))}"
            )
        dtype, value = read_dtype(value.get("dtype", "float32")), value["values"]
    try:
        return torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name!r} should be a list of numbers with equally long rows: {error}") from None


def write_tensors(value: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return tensors as a file holds them inline.

    Raises:
        ValueError: they have too many numbers for a text file.
    """
    total = sum(each.numel() for each in value.values())
    if total > _INLINE:
        raise ValueError(
            f"tensors of {total} numbers are too long for a recipe; write them with safetensors.torch.save_file(), and "
            "{file: NAME.safetensors} in their place"
        )
    return {
        name: {"dtype": str(each.dtype).removeprefix("torch."), "values": each.detach().cpu().tolist()}
        for name, each in value.items()
    }
