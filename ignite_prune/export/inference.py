"""Sparse layers where they are measured to be faster than dense ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_positive, near
from ignite_prune._utils.interleaved import interleaved
from ignite_prune._utils.table import as_table, shown_seconds
from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.export.sparse_conv import SparseConv, is_pointwise
from ignite_prune.export.sparse_formats import formats_for
from ignite_prune.export.sparse_linear import SparseLinear
from ignite_prune.export.sparse_weight import FORMATS, SparseWeight
from ignite_prune.structure.model_io import as_arguments, checked_device
from ignite_prune.structure.slicing.compare import run

_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LayerResult:
    """What was measured of one layer.

    Attributes:
        name: of the layer.
        sparsity: fraction of zeros in its weight.
        form: ``"csr"``, ``"bsr 16x16"``, ``"semi_structured"``; ``"dense"`` if the layer was not replaced.
        dense: seconds of the dense layer; NaN if nothing was measured.
        sparse: seconds of the fastest sparse one; NaN if there is none.
        reason: why the layer was not replaced; empty if it was.
    """

    name: str
    sparsity: float
    form: str
    dense: float
    sparse: float
    reason: str


@dataclass(frozen=True)
class SparseReport:
    """What :func:`sparse_inference` measured and replaced; ``print(report)`` shows it as a table.

    Attributes:
        layers: one result for each linear layer and 1×1 convolution.
        dense: seconds of the whole model before.
        sparse: seconds of the whole model with the sparse layers; equal to ``dense`` if nothing was replaced.
        replaced: names of the layers that were replaced.
        reason: why nothing was replaced; empty otherwise.
    """

    layers: tuple[LayerResult, ...]
    dense: float
    sparse: float
    replaced: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        rows = [
            [each.name, f"{each.sparsity:.1%}", each.form, *map(shown_seconds, (each.dense, each.sparse)), each.reason]
            for each in self.layers
        ]
        rows.append(["whole model", "", "", shown_seconds(self.dense), shown_seconds(self.sparse), self.reason])
        return as_table(["layer", "sparsity", "format", "dense", "sparse", "kept dense because"], rows)


def sparse_inference(
    model: nn.Module, example_inputs: Any, *, formats: Sequence[str] = FORMATS, min_gain: float = 1.1
) -> SparseReport:
    """Replace linear layers and 1×1 convolutions by sparse ones, in place, where these are measured to be faster here.

    Each is measured with the inputs that it has in a forward pass over the example, as dense and in each
    format. It is replaced by the fastest if that is at least ``min_gain`` times as fast and its outputs are equal to
    float tolerance (1e-5 of the largest output in float32). If the whole model is not faster in the end, all layers are
    put back. Names and the state_dict do not change; a replaced model is for inference, and put in eval mode.

    Args:
        model: bare, wrapped or compiled; finalized if it was pruned in training.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, with the batch size and on the
            device that the model will be used with: what is faster depends on both.
        formats: of ``"csr"``, ``"bsr"`` (square blocks of 4 to 32) and ``"semi_structured"`` (2:4, on CUDA alone).
        min_gain: dense time over sparse time, at least 1.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an unknown format, ``min_gain`` below 1, inputs on another device, or a forward pass that fails; the
            model is not changed then.

    Example:
        >>> from ignite_prune import export, prune_model
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = export.sparse_inference(model, torch.randn(4, 8))  # dense, and small: nothing is gained
        >>> report.replaced, [each.form for each in report.layers]
        ((), ['dense', 'dense'])
    """
    _check(formats, min_gain)
    bare = unwrap(model)
    checked_device(bare, example_inputs)
    inputs, expected = _observed(bare, example_inputs)
    results: list[LayerResult] = []
    chosen: dict[nn.Module, SparseWeight] = {}
    with undisturbed(bare), torch.no_grad():
        for name, layer in inputs.names.items():
            result, sparse = _measured(name, layer, inputs, formats, min_gain)
            results.append(result)
            if sparse is not None:
                chosen[layer] = sparse
    return _replaced(bare, example_inputs, expected, results, chosen)


def to_dense(model: Module) -> Module:
    """Put the dense layer in the place of every sparse one, in place, and return the model.

    Example:
        >>> model = to_dense(nn.Sequential(SparseLinear(nn.Linear(4, 2))))
        >>> type(model[0]).__name__
        'Linear'
    """
    if isinstance(model, SparseWeight):
        raise TypeError(
            f"Argument model is a {type(model).__name__} itself, which cannot be replaced in place; use model.dense()"
        )
    _exchange(model, {each: each.dense() for each in unwrap(model).modules() if isinstance(each, SparseWeight)})
    return model


def _is_matrix(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or is_pointwise(layer)


class _Inputs:
    """The linear layers and 1×1 convolutions that a forward pass calls, and the first input of each."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {name: each for name, each in model.named_modules() if _is_matrix(each)}
        self.first: dict[nn.Module, Tensor] = {}
        self.hooked = {each for each in self.names.values() if each._forward_hooks or each._forward_pre_hooks}
        held: dict[Tensor, int] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    held[parameter] = held.get(parameter, 0) + 1
        self.tied = {each for each in self.names.values() if held[each.weight] > 1}

    def keep(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input")
        if isinstance(given, Tensor):
            self.first.setdefault(layer, given.detach().clone())

    def reason(self, layer: nn.Module) -> str:
        if layer not in self.first:
            return "its forward is not called"
        if layer in self.hooked:
            return "it has forward hooks"
        return "its weight is tied" if layer in self.tied else ""


def _observed(model: nn.Module, example_inputs: Any) -> tuple[_Inputs, list[Tensor]]:
    inputs = _Inputs(model)
    handles = [each.register_forward_pre_hook(inputs.keep, with_kwargs=True) for each in inputs.names.values()]
    try:
        expected, _ = run(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, expected


def _measured(
    name: str, layer: Any, inputs: _Inputs, formats: Sequence[str], min_gain: float
) -> tuple[LayerResult, SparseWeight | None]:
    """Return a layer's result, and its sparse form if that is to replace it."""
    nan, weight = float("nan"), layer.weight.detach()
    sparsity = 1 - int(weight.count_nonzero()) / max(weight.numel(), 1)
    reason = inputs.reason(layer)
    if not reason and sparsity < 0.5:
        reason = f"it is {sparsity:.0%} sparse, and below 50 % no format is faster"
    if reason:
        return LayerResult(name, sparsity, "dense", nan, nan, reason), None
    x = inputs.first[layer]
    candidates: list[SparseWeight] = []
    refusals: list[str] = []
    for form, block in formats_for(weight.flatten(1), formats, refusals):
        sparse = (SparseLinear if type(layer) is nn.Linear else SparseConv)(layer, form, block).eval()
        try:
            fits = _equal(sparse(x), layer(x))
        except (RuntimeError, NotImplementedError) as error:
            refusals.append(f"{form}: {str(error).splitlines()[0]:.80}")
            continue
        if fits:
            candidates.append(sparse)
        else:
            refusals.append(f"{form}: its outputs differ")
    if not candidates:
        return LayerResult(name, sparsity, "dense", nan, nan, "; ".join(refusals) or "no format fits"), None
    dense, *times = interleaved([_call(each, x) for each in (layer, *candidates)])
    best = min(range(len(times)), key=times.__getitem__)
    if dense < min_gain * times[best]:
        reason = f"{candidates[best].form} is {dense / times[best]:.2f} times as fast, less than {min_gain:g}"
        return LayerResult(name, sparsity, "dense", dense, times[best], "; ".join([reason, *refusals])), None
    chosen = candidates[best]
    form = chosen.form if chosen.form != "bsr" else f"bsr {chosen.block[0]}x{chosen.block[1]}"
    return LayerResult(name, sparsity, form, dense, times[best], ""), chosen


def _equal(found: Tensor, expected: Tensor, factor: float = 1) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return bool(torch.equal(found, expected))
    largest = float(expected.nan_to_num(0, 0, 0).abs().amax()) if expected.numel() else 0.0
    atol = factor * _TOLERANCE.get(found.dtype, 1e-5) * largest
    return bool(torch.allclose(found, expected, rtol=0, atol=atol, equal_nan=True))


def _call(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    return lambda: layer(x)


def _replaced(
    model: nn.Module,
    example_inputs: Any,
    expected: list[Tensor],
    results: list[LayerResult],
    chosen: dict[nn.Module, SparseWeight],
) -> SparseReport:
    """Exchange the layers, and put them back unless the whole model is equal and not slower."""
    args, kwargs = as_arguments(model, example_inputs)
    back = {sparse: layer for layer, sparse in chosen.items()}

    def call() -> None:
        model(*args, **kwargs)

    try:
        with undisturbed(model), torch.no_grad():
            if not chosen:
                (dense,) = interleaved([call])
                return SparseReport(tuple(results), dense, dense, (), "no layer is faster")
            dense, sparse = interleaved(
                [call, call], prepare=[lambda: _exchange(model, back), lambda: _exchange(model, chosen)]
            )
        found, _ = run(model, example_inputs)
        if len(found) == len(expected) and all(_equal(*pair, 10) for pair in zip(found, expected)):
            reason = "" if sparse <= dense else f"with the sparse layers the model takes {shown_seconds(sparse)}"
        else:
            reason = "with the sparse layers the model's outputs differ"
    except BaseException:
        _exchange(model, back)
        raise
    if reason:
        _exchange(model, back)
        undone = [
            replace(each, form="dense", reason=each.reason or "the whole model is not faster") for each in results
        ]
        return SparseReport(tuple(undone), dense, dense, (), reason)
    model.eval()
    return SparseReport(tuple(results), dense, sparse, tuple(each.name for each in results if not each.reason), "")


def _exchange(model: nn.Module, others: dict[Any, Any]) -> None:
    """Put other modules in the place of some, everywhere in a model."""
    for parent in list(unwrap(model).modules()):
        for name, child in parent._modules.items():
            if child in others:
                parent._modules[name] = others[child]


def _check(formats: Any, min_gain: Any) -> None:
    if isinstance(formats, str) or not isinstance(formats, Sequence) or not formats:
        raise TypeError(f"Argument formats should be a sequence of names such as {FORMATS}, but given {formats!r}")
    for each in formats:
        if each not in FORMATS:
            raise ValueError(f"Argument formats: there is no format {each!r}; {near(str(each), list(FORMATS))}")
    check_positive("min_gain", min_gain)
    if min_gain < 1:
        raise ValueError(f"Argument min_gain should be at least 1, but given {min_gain}")
