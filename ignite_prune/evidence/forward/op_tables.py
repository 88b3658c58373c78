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


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


NORMS = _names("batch_norm instance_norm group_norm layer_norm rms_norm")
ACTIVATIONS = _names(
    "relu relu6 gelu silu elu selu celu leaky_relu prelu rrelu hardtanh clamp clip clamp_min clamp_max hardswish "
    "hardsigmoid softplus mish tanh sigmoid softsign logsigmoid log_sigmoid threshold tanhshrink hardshrink softshrink "
    "expit erf"
)
ARITHMETIC = _names(
    "add radd iadd sub rsub isub subtract mul rmul imul multiply div rdiv rtruediv idiv itruediv truediv divide "
    "true_divide pow rpow ipow neg negative abs square sqrt rsqrt reciprocal exp expm1 log log1p sin cos sign "
    "where masked_fill maximum minimum max min addcmul addcdiv lerp"
)
COMPARISONS = _names(
    "gt lt ge le eq ne greater less greater_equal less_equal zeros_like ones_like full_like logical_not"
)
REGROUPING = _names("view reshape flatten unflatten squeeze unsqueeze")
PASSING = _names("to type type_as float half bfloat16 double contiguous clone")
DROPOUT = _names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout")
READING = _names(
    "get set delete size dim ndimension numel nelement stride is_contiguous is_floating_point is_complex item tolist "
    "is_same_size storage_offset element_size data_ptr get_device detach requires_grad register_hook retain_grad "
    "untyped_storage hash repr format len bool numpy allclose equal is_nonzero result_type iter"
)
SHAPING = _names(
    "view reshape transpose swapaxes swapdims permute movedim moveaxis split chunk tensor_split split_with_sizes "
    "unbind getitem expand expand_as repeat repeat_interleave flatten unflatten squeeze unsqueeze select narrow cat "
    "concat concatenate stack view_as view_as_complex view_as_real index_select roll pad"
)
POOLING = frozenset(
    f"{kind}_pool{spatial}d{suffix}"
    for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max", "fractional_max")
    for spatial in (1, 2, 3)
    for suffix in ("", "_with_indices")
)
CONVOLUTIONS = frozenset(f"conv{kind}{spatial}d" for kind in ("", "_transpose") for spatial in (1, 2, 3))
PRODUCTS = _names("matmul mm bmm baddbmm")
_IN_PLACE = _names(
    "__iadd__ __isub__ __imul__ __idiv__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ "
    "__imatmul__ __setitem__"
)


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
        """Whether the call writes to an argument, by its name (``relu_``), ``inplace=`` or ``out=``."""
        name = str(getattr(self.func, "__name__", ""))
        if name.endswith("_") and not name.endswith("__"):
            return True
        return name in _IN_PLACE or bool(self.kwargs.get("inplace")) or self.kwargs.get("out") is not None

    @property
    def attribute(self) -> str:
        """The attribute that a ``__get__`` reads: ``T`` for ``tensor.T``."""
        return str(getattr(getattr(self.func, "__self__", None), "__name__", ""))

    @property
    def turns(self) -> bool:
        """Whether the call may swap the two dims of a matrix: ``w.t()``, ``w.T``, ``w.transpose(0, 1)``, and so on."""
        if self.op == "get":
            return self.attribute in ("T", "mT", "H", "mH")
        return self.op in ("t", "transpose", "swapaxes", "swapdims", "permute", "adjoint")


def op_name(func: Callable[..., Any]) -> str:
    """Return a function's name without the underscores of methods and in-place forms.

    Example:
        >>> op_name(F.relu_), op_name(Tensor.__radd__), op_name(F.relu)
        ('relu', 'radd', 'relu')
    """
    return str(getattr(func, "__name__", "")).strip("_")


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
