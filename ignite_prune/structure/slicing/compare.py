"""Comparison of a masked model with the sliced one: both are run, and the first differing layer is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ignite_prune._utils.copies import copy_of
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.structure.model_io import as_arguments, tensors_of
from ignite_prune.structure.slicing.held_chance import HeldChance
from ignite_prune.structure.slicing.norm_of_some import NormOfSome

Run = Callable[[nn.Module], list[Tensor]]


def masked_copy(model: nn.Module, masks: Mapping[str, Tensor], normalised: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model with masked weights; parameters without a mask share their memory with the model.

    Args:
        model: the unwrapped model.
        masks: masks by parameter name.
        normalised: by path of a norm, the channels that it normalises over in the sliced model, as a bool tensor.
    """
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, parameter in named_parameters(model).items():
            values = parameter * masks[name].to(parameter.device) if name in masks else parameter.detach()
            memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    masked = copy_of(model, memo)
    _normalise_over(masked, normalised)
    return masked


def _normalise_over(model: nn.Module, left: Mapping[str, Tensor]) -> None:
    """Restrict norms to the remaining channels, as in the sliced model."""
    for path, stay in left.items():
        if not stay.all():
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, NormOfSome(model.get_submodule(path), stay))


def runs_in_training(model: nn.Module, example_inputs: Any) -> bool:
    """Return whether a model runs in training mode."""
    try:
        run_in_training(model, example_inputs)
    except ValueError:  # for example BatchNorm with a batch of one
        return False
    return True


def run_in_training(model: nn.Module, example_inputs: Any) -> None:
    """Run a copy of a model in training mode, where ``forward`` may take another path than in eval mode.

    Raises:
        ValueError: the forward pass fails; the message names the layer.
    """
    args, kwargs = as_arguments(model, example_inputs)
    model = copy_of(model).train()
    with torch.no_grad(), torch.random.fork_rng(), _naming(model):
        model(*args, **kwargs)


def run(model: nn.Module, example_inputs: Any, counting: bool = False) -> tuple[list[Tensor], int]:
    """Run a model in eval mode and return its output tensors and FLOPs (0 unless ``counting``); modes are restored.

    Raises:
        ValueError: the forward pass fails; the message names the layer.
    """
    return run_with(model, *as_arguments(model, example_inputs), counting)


def run_without(
    model: nn.Module, example_inputs: Any, expected: Sequence[Tensor], what: str, reference: str
) -> tuple[int, float]:
    """Run a model from which parts were removed, and return its FLOPs and how much its outputs differ.

    Args:
        model: without the parts.
        example_inputs: its inputs.
        expected: the outputs of the whole model that does not use the parts.
        what: names the parts, for errors.
        reference: continues the error of outputs that differ, after "from".

    Raises:
        ValueError: the model does not run, or its outputs differ by more than :func:`tolerance`.
    """
    try:
        found, flops = run(model, example_inputs, True)
        error = relative_difference(found, expected)
    except Exception as problem:
        raise ValueError(f"The model does not run without {what}: {problem}") from problem
    if not error <= tolerance(model):
        raise ValueError(f"The model without {what} differs by {error:.1e} from {reference}")
    return flops, error


def run_with(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], counting: bool = False
) -> tuple[list[Tensor], int]:
    """Run a model as :func:`run` does, with these arguments."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # slow to import
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with undisturbed(model), torch.no_grad(), _naming(model), ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # the fast path pads its output differently from the layers
        if counting:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the counter sees attention as its matrix products
            stack.enter_context(counter)
        torch.manual_seed(0)
        before = [(module, dict(vars(module))) for module in model.modules()]
        found = tensors_of(model(*args, **kwargs)) or _stored(before)
        return found, counter.get_total_flops()


def _stored(before: Sequence[tuple[nn.Module, Mapping[str, Any]]]) -> list[Tensor]:
    """Return the tensors that modules store since then: all that a forward pass without outputs gives."""
    values = [(its.get(name), value) for module, its in before for name, value in vars(module).items()]
    return tensors_of([value for held, value in values if value is not held])


@contextmanager
def _naming(model: nn.Module) -> Iterator[None]:
    """Re-raise any exception as a ValueError that names the layer in which it occurred."""
    names = {module: name for name, module in model.named_modules()}
    inside: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(enter).remove)
        stack.callback(register_module_forward_hook(leave).remove)
        try:
            yield
        except Exception as error:
            where = names.get(inside[-1]) or f"the forward of {type(inside[-1]).__name__}" if inside else "the call"
            raise ValueError(f"{error} (in {where})") from error


def first_difference(masked: nn.Module, model: nn.Module, example_inputs: Any) -> str:
    """Return a sentence that names the first called layer whose output differs between the two models."""
    before, after = _outputs(masked, example_inputs), _outputs(model, example_inputs)
    for (name, expected), (other, found) in zip(before, after):
        if name != other:
            return f"after {name!r} other layers are called"
        pairs = list(zip(found, expected))
        if all(a.shape == b.shape for a, b in pairs) and any(not _relative(a, b) <= tolerance(model) for a, b in pairs):
            return f"the first layer of the same width that differs is {name!r}"
    return "no layer of the same width differs, so the cause is in what forward() does with the layers' outputs"


def _outputs(model: nn.Module, example_inputs: Any) -> list[tuple[str, list[Tensor]]]:
    """Return the name and output tensors of every submodule call, in call order."""
    names, found = {module: name for name, module in model.named_modules() if name}, []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        if module in names:
            found.append((names[module], [each.detach().clone() for each in tensors_of(output)]))

    with ExitStack() as stack:
        stack.callback(register_module_forward_hook(record).remove)
        run(model, example_inputs)
    return found


def relative_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of outputs, relative to the largest absolute value.

    Raises:
        ValueError: there are no outputs to compare, or their number or shapes differ.
    """
    worst = 0.0
    if not expected:
        raise ValueError("its outputs hold no tensor to compare")
    if len(found) != len(expected):
        raise ValueError(f"it gives {len(found)} outputs instead of {len(expected)}")
    for one, other in zip(found, expected):
        if one.shape != other.shape:
            raise ValueError(f"an output has the shape {tuple(one.shape)} instead of {tuple(other.shape)}")
        if one.is_meta:
            raise ValueError("its outputs are on the meta device, where there are no values to compare")
        worst = max(worst, _relative(one, other))
    return worst


def difference_without_chance(model: nn.Module, masked: nn.Module, run: Run) -> tuple[float, list[str]]:
    """Return the difference of two models' outputs if random numbers are held, and which operations draw some.

    Args:
        model: the sliced one.
        masked: the one that it should be equal to.
        run: returns a model's output tensors.
    """
    with HeldChance() as held:
        found, expected = run(model), run(masked)
    return relative_difference(found, expected), sorted(held.drawn)


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return the relative difference; infinity if NaN and infinite values are not at the same places."""
    if found.is_complex():
        found, expected = torch.view_as_real(found), torch.view_as_real(expected)
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return math.inf
    if not torch.allclose(found[~finite], expected[~finite], equal_nan=True):
        return math.inf
    found, expected = found[finite].double(), expected[finite].double()
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)


def tolerance(model: nn.Module) -> float:
    """Return the largest relative difference that rounding may cause, by the model's dtypes."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(max((torch.finfo(kind).eps for kind in kinds), default=1e-7) * 1e4, 0.05)
