"""A masked model and its sliced self, compared: both are run, and what differs is named."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ignite_prune.core.selection import named_parameters
from ignite_prune.evidence.calibration import undisturbed
from ignite_prune.structure.slicing.model_edit import slice_
from ignite_prune.structure.tracing.trace import as_arguments


def masked_twin(model: nn.Module, masks: Mapping[str, Tensor], normalised: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with masked weights; the others are over the same memory.

    Args:
        model: unwrapped.
        masks: by name.
        normalised: which channels norms go over, as they will in the sliced model, by path.
    """
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, parameter in named_parameters(model).items():
            values = parameter * masks[name].to(parameter.device) if name in masks else parameter.detach()
            memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    twin = copy.deepcopy(model, memo)
    _normalise_over(twin, normalised)
    return twin


def _normalise_over(twin: nn.Module, left: Mapping[str, Tensor]) -> None:
    """Let norms go over what is left alone, as they will in the sliced model."""
    for path, stay in left.items():
        if not stay.all():
            owner, _, name = path.rpartition(".")
            setattr(twin.get_submodule(owner), name, _NormOfSome(twin.get_submodule(path), stay))


class _NormOfSome(nn.Module):
    """A norm over some channels; the others are 0.

    Args:
        norm: of all of them.
        stay: which, bool.
    """

    def __init__(self, norm: nn.Module, stay: Tensor) -> None:
        super().__init__()
        self._stay, self._dim = stay.nonzero().squeeze(1), 1 if isinstance(norm, nn.GroupNorm) else -1
        self.norm = copy.deepcopy(norm)
        names = [name for name, _ in norm.named_parameters()]
        slice_(self.norm, {name: {0: self._stay.tolist()} for name in names})

    def forward(self, x: Tensor) -> Tensor:
        stay = self._stay.to(x.device)
        return torch.zeros_like(x).index_copy(self._dim, stay, self.norm(x.index_select(self._dim, stay)))


def runs_in_training(model: nn.Module, example_inputs: Any) -> bool:
    """Whether a model runs in training mode."""
    try:
        run_in_training(model, example_inputs)
    except ValueError:  # BatchNorm, of a batch of one, say
        return False
    return True


def run_in_training(model: nn.Module, example_inputs: Any) -> None:
    """Run a copy of a model in training mode, where its program may be another.

    Raises:
        ValueError: it fails; names the layer.
    """
    args, kwargs = as_arguments(example_inputs)
    model = copy.deepcopy(model).train()
    with torch.no_grad(), torch.random.fork_rng(), _naming(model):
        model(*args, **kwargs)


def run(model: nn.Module, example_inputs: Any, counting: bool = False) -> tuple[list[Tensor], int]:
    """Run a model in eval mode and return its outputs, and FLOPs where they are counted; it is left as it was.

    Raises:
        ValueError: it fails; names the layer.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel  # slow to import
    from torch.utils.flop_counter import FlopCounterMode

    args, kwargs = as_arguments(example_inputs)
    kernel = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which pads its answer otherwise than the layers themselves
    counter = FlopCounterMode(display=False)
    try:
        with undisturbed(model), torch.no_grad(), _naming(model), ExitStack() as stack:
            if counting:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the counter knows attention by its products
                stack.enter_context(counter)
            torch.manual_seed(0)
            return _tensors(model(*args, **kwargs)), counter.get_total_flops()
    finally:
        torch.backends.mha.set_fastpath_enabled(kernel)


@contextmanager
def _naming(model: nn.Module) -> Iterator[None]:
    """Name the layer in what is raised inside."""
    names = {module: name for name, module in model.named_modules()}
    inside: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    except Exception as error:
        where = names.get(inside[-1]) or f"the forward of {type(inside[-1]).__name__}" if inside else "the call"
        raise ValueError(f"{error} (in {where})") from error
    finally:
        for handle in handles:
            handle.remove()


def first_difference(twin: nn.Module, model: nn.Module, example_inputs: Any) -> str:
    """Return a sentence on the first layer, in the order of the calls, that answers otherwise than its twin."""
    before, after = _answers(twin, example_inputs), _answers(model, example_inputs)
    for (name, its), (other, mine) in zip(before, after):
        if name != other:
            return f"after {name!r} other layers are called"
        pairs = list(zip(mine, its))
        if all(a.shape == b.shape for a, b in pairs) and any(not _relative(a, b) <= tolerance(model) for a, b in pairs):
            return f"the first layer of the same width that differs is {name!r}"
    return "no layer of the same width differs, so it comes of what is done with the layers' outputs"


def _answers(model: nn.Module, example_inputs: Any) -> list[tuple[str, list[Tensor]]]:
    """Return what each call of a layer inside gives, in order."""
    names, found = {module: name for name, module in model.named_modules() if name}, []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if module in names:
            found.append((names[module], [each.detach().clone() for each in _tensors(output)]))

    handle = register_module_forward_hook(note)
    try:
        run(model, example_inputs)
    finally:
        handle.remove()
    return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [each for held in value.values() for each in _tensors(held)]
    if isinstance(value, (tuple, list)):
        return [each for held in value for each in _tensors(held)]
    return [each for held in getattr(value, "__dict__", {}).values() for each in _tensors(held)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the greatest difference of outputs, relative to the greatest number.

    Raises:
        ValueError: there are none to compare, other ones, or of other shapes.
    """
    worst = 0.0
    if not expected:
        raise ValueError("its outputs hold no tensor to compare")
    if len(found) != len(expected):
        raise ValueError(f"it gives {len(found)} outputs instead of {len(expected)}")
    for mine, its in zip(found, expected):
        if mine.shape != its.shape:
            raise ValueError(f"an output has the shape {tuple(mine.shape)} instead of {tuple(its.shape)}")
        worst = max(worst, _relative(mine, its))
    return worst


def _relative(mine: Tensor, its: Tensor) -> float:
    """Return the greatest difference over the greatest number; infinite where NaN and infinity are not alike."""
    if mine.is_complex():
        mine, its = torch.view_as_real(mine), torch.view_as_real(its)
    finite = its.isfinite()
    if not torch.equal(mine.isfinite(), finite) or not torch.allclose(mine[~finite], its[~finite], equal_nan=True):
        return math.inf
    mine, its = mine[finite].double(), its[finite].double()
    return float((mine - its).abs().max()) / max(float(its.abs().max()), 1e-12) if its.numel() else 0.0


def tolerance(model: nn.Module) -> float:
    """Return how large a difference comes of rounding alone."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(max((torch.finfo(kind).eps for kind in kinds), default=1e-7) * 1e4, 0.05)
