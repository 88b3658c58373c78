"""Tables of torch functions by name, and the record of one call."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ignite_prune._utils.nested import tensors_in

_NORMS = "batch_norm instance_norm group_norm layer_norm rms_norm"
_ACTIVATIONS = (
    "relu relu6 gelu silu elu selu celu leaky_relu prelu rrelu hardtanh clamp clip clamp_min clamp_max hardswish "
    "hardsigmoid softplus mish tanh sigmoid softsign logsigmoid log_sigmoid threshold tanhshrink hardshrink softshrink "
    "expit erf"
)
_ARITHMETIC = (
    "add radd iadd sub rsub isub subtract mul rmul imul multiply div rdiv rtruediv idiv itruediv truediv divide "
    "true_divide pow rpow ipow neg negative abs square sqrt rsqrt reciprocal exp expm1 log log1p sin cos sign "
    "where masked_fill maximum minimum max min addcmul addcdiv lerp"
)
_COMPARISONS = "gt lt ge le eq ne greater less greater_equal less_equal zeros_like ones_like full_like logical_not"
_PASSING = "to type type_as float half bfloat16 double contiguous clone"
_DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
_READING = (
    "get set delete size dim ndimension numel nelement stride is_contiguous is_floating_point is_complex item tolist "
    "is_same_size storage_offset element_size data_ptr get_device detach requires_grad register_hook retain_grad "
    "untyped_storage hash repr format len bool numpy allclose equal is_nonzero result_type iter"
)
_SHAPING = (
    "view reshape transpose swapaxes swapdims permute movedim moveaxis split chunk tensor_split split_with_sizes "
    "unbind getitem expand expand_as repeat repeat_interleave flatten unflatten squeeze unsqueeze select narrow cat "
    "concat concatenate stack view_as view_as_complex view_as_real index_select roll pad"
)

NORMS = frozenset(_NORMS.split())
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
ARITHMETIC = frozenset(_ARITHMETIC.split())
COMPARISONS = frozenset(_COMPARISONS.split())
REGROUPING = frozenset(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"))
PASSING = frozenset(_PASSING.split())
DROPOUT = frozenset(_DROPOUT.split())
READING = frozenset(_READING.split())
SHAPING = frozenset(_SHAPING.split())
POOLING = frozenset(
    f"{kind}_pool{spatial}d{suffix}"
    for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max", "fractional_max")
    for spatial in (1, 2, 3)
    for suffix in ("", "_with_indices")
)
CONVOLUTIONS = frozenset(f"conv{kind}{spatial}d" for kind in ("", "_transpose") for spatial in (1, 2, 3))
PRODUCTS = frozenset(("matmul", "mm", "bmm", "baddbmm"))

_TURNING = ("T", "mT", "H", "mH")
_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
) | {"__setitem__"}


@dataclass(slots=True)
class Call:
    """One torch function call.

    Attributes:
        func: the function itself.
        op: its name without underscores at either end: one name for ``relu``, ``relu_`` and ``Tensor.relu``.
        args: positional arguments.
        kwargs: keyword arguments.
        tensors: every tensor among the arguments, those in lists and tuples too.
    """

    func: Callable[..., Any]
    op: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tensors: list[Tensor]

    @classmethod
    def of(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Read a call."""
        tensors: list[Tensor] = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                tensors.append(value)
            elif isinstance(value, (tuple, list, dict)):
                tensors += tensors_in(value)
        return cls(func, op_name(func), args, kwargs, tensors)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return the argument at ``position``, or called ``name``."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    @property
    def input(self) -> Any:
        """The first argument, which functions of one tensor call ``input``."""
        return self.argument(0, "input")

    @property
    def in_place(self) -> bool:
        """Whether the call writes to one of its arguments."""
        return writes(self.func, self.kwargs)


def op_name(func: Callable[..., Any]) -> str:
    """Return a function's name without the underscores of methods and in-place forms.

    Example:
        >>> op_name(F.relu_), op_name(Tensor.__radd__), op_name(F.relu)
        ('relu', 'radd', 'relu')
    """
    return str(getattr(func, "__name__", "")).strip("_")


def writes(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call is in place, by its name, ``inplace=`` or ``out=``.

    Example:
        >>> writes(F.relu_, {}), writes(F.relu, {"inplace": True}), writes(F.relu, {})
        (True, True, False)
    """
    name = str(getattr(func, "__name__", ""))
    if name.endswith("_") and not name.endswith("__"):
        return True
    return name in _IN_PLACE or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


def turns(call: Call) -> bool:
    """Return whether a call may swap the two dims of a matrix: ``w.t()``, ``w.T``, ``w.transpose(0, 1)``, and so on."""
    if call.op == "get":
        return attribute(call.func) in _TURNING
    return call.op in ("t", "transpose", "swapaxes", "swapdims", "permute", "adjoint")


def attribute(func: Callable[..., Any]) -> str:
    """Return the attribute that a ``__get__`` reads: ``T`` for ``tensor.T``."""
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


def unit_dim(op: str) -> int:
    """Return the dim of a layer's output units, counted from the end.

    Example:
        >>> unit_dim("linear"), unit_dim("conv2d"), unit_dim("conv_transpose3d")
        (-1, -3, -4)
    """
    return -(int(op[-2]) + 1) if op in CONVOLUTIONS else -1


def pools_units(op: str, dim: int) -> bool:
    """Return whether a pooling is over the unit dim; it is over as many of the last dims as its name says.

    Example:
        >>> pools_units("max_pool2d", -3), pools_units("adaptive_avg_pool1d", -1)
        (False, True)
    """
    return -dim <= int(op.split("_pool")[1][0])


def enter_attention(mode: TorchFunctionMode, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run ``F.multi_head_attention_forward`` so that the mode sees the calls inside.

    The function first dispatches itself to the mode; this runs a copy of it that does not.
    """
    function = F.multi_head_attention_forward
    namespace = {**vars(F), "has_torch_function": lambda _: False}
    inner = types.FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    inner.__kwdefaults__ = function.__kwdefaults__
    with mode:
        return inner(*args, **kwargs)
