"""Attributes that hold the width of a module, which slicing updates: ``in_features``, ``num_heads``, config entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ignite_prune.structure.tracing.heads_attention import HeadsAttention

Attributes = dict[str, Any]
Known = TypeVar("Known")


def widths(module: nn.Module) -> Attributes:
    """Return the values of a module's width attributes that match the shapes of its tensors.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> layer.weight = nn.Parameter(layer.weight[:2])
        >>> widths(layer)
        {'in_features': 3, 'out_features': 2}
    """
    with _still(module):
        for kind, read in _WIDTHS.items():
            if isinstance(module, kind):
                return read(module)
        return _conv1d(module) if type(module).__name__ == "Conv1D" else {}


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Put a module's parametrizations in eval mode: reading its weight calls them, and some change their buffers."""
    inside = list(module.parametrizations.modules()) if is_parametrized(module) else []  # type: ignore[union-attr]
    changed = [each for each in inside if each.training]
    for each in changed:
        each.training = False
    try:
        yield
    finally:
        for each in changed:
            each.training = True


def _linear(module: Any) -> Attributes:
    outputs, inputs = module.weight.shape
    return {"in_features": inputs, "out_features": outputs}


def _conv(module: Any) -> Attributes:
    outputs, within = module.weight.shape[:2]
    groups = module.groups
    if groups == module.in_channels and groups > 1:  # depthwise: one group per channel
        groups = outputs // (module.out_channels // module.in_channels)
    return {"in_channels": within * groups, "out_channels": outputs, "groups": groups}


def _conv_transpose(module: Any) -> Attributes:
    inputs, within = module.weight.shape[:2]
    groups = inputs if module.groups == module.in_channels > 1 else module.groups
    return {"in_channels": inputs, "out_channels": within * groups, "groups": groups}


def _batch_norm(module: Any) -> Attributes:
    tensor = module.running_mean if module.weight is None else module.weight
    return {} if tensor is None else {"num_features": len(tensor)}


def _layer_norm(module: Any) -> Attributes:
    return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}


def _group_norm(module: Any) -> Attributes:
    if module.weight is None:
        return {}
    channels = len(module.weight)
    return {"num_channels": channels} | ({"num_groups": channels} if module.num_groups == module.num_channels else {})


def _embedding(module: Any) -> Attributes:
    rows, columns = module.weight.shape
    return {"num_embeddings": rows, "embedding_dim": columns}


def _prelu(module: Any) -> Attributes:
    return {"num_parameters": len(module.weight)}


def _recurrent(module: Any) -> Attributes:
    inputs, hidden = module.weight_ih_l0.shape[1], module.weight_hh_l0.shape[1]
    if not module.proj_size:
        return {"input_size": inputs, "hidden_size": hidden}
    return {"input_size": inputs, "hidden_size": module.weight_hr_l0.shape[1], "proj_size": hidden}


def _cell(module: Any) -> Attributes:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _bilinear(module: Any) -> Attributes:
    outputs, first, second = module.weight.shape
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


def _attention(module: Any) -> Attributes:
    embedding, inner = module.out_proj.weight.shape
    into = [module.in_proj_weight] * 2 if module.q_proj_weight is None else [module.k_proj_weight, module.v_proj_weight]
    # _qkv_same_embed_dim=False keeps TransformerEncoderLayer from the fused kernel, which derives the head count from
    # the width of the embedding.
    widths = {"embed_dim": embedding, "kdim": into[0].shape[1], "vdim": into[1].shape[1]}
    return {**widths, "num_heads": inner // module.head_dim, "_qkv_same_embed_dim": False}


def _conv1d(module: Any) -> Attributes:
    """Return the widths of transformers' Conv1D, a linear layer with a transposed weight."""
    inputs, outputs = module.weight.shape
    return {"nx": inputs, "nf": outputs}


_WIDTHS: dict[type[nn.Module], Callable[[Any], Attributes]] = {
    nn.Linear: _linear,
    nn.modules.conv._ConvTransposeNd: _conv_transpose,
    nn.modules.conv._ConvNd: _conv,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.Bilinear: _bilinear,
    nn.EmbeddingBag: _embedding,
    nn.MultiheadAttention: _attention,
}


def dropout_rates(model: nn.Module) -> dict[str, float]:
    """Return the rate of each Dropout module, by path."""
    return {
        path: module.p for path, module in model.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    }


@dataclass(frozen=True)
class Count:
    """A number of units that a ``transformers`` module and its config store as attributes.

    Args:
        layer: path, below the module, of the layer whose outputs are the units.
        attribute: the module's attribute for the number of units; empty if it has none.
        config: the config's attribute for the number of units; empty if it has none.
        size: path of the attribute for the number of outputs per unit, such as the size of a head; empty for 1.
        width: the module's attribute for the total number of outputs; empty if it has none.
        inputs: whether the units are the layer's inputs instead of its outputs.
    """

    layer: str
    attribute: str = ""
    config: str = ""
    size: str = ""
    width: str = ""
    inputs: bool = False


_COUNTS: dict[str, tuple[Count, ...]] = {
    "BertSelfAttention": (
        Count("query", "num_attention_heads", "num_attention_heads", "attention_head_size", "all_head_size"),
    ),
    "BertIntermediate": (Count("dense", config="intermediate_size"),),
    "DistilBertSelfAttention": (Count("q_lin", "n_heads", "n_heads", "attention_head_size"),),
    "FFN": (Count("lin1", config="hidden_dim"),),
    "GPT2Attention": (Count("c_proj", "num_heads", "n_head", "head_dim", "split_size", inputs=True),),
    "GPT2MLP": (Count("c_fc", config="n_inner"),),
    "LlamaAttention": (
        Count("q_proj", config="num_attention_heads", size="head_dim"),
        Count("k_proj", config="num_key_value_heads", size="head_dim"),
    ),
    "LlamaMLP": (Count("gate_proj", "intermediate_size", "intermediate_size"),),
    "SwinAttention": (Count("q_proj", "num_attention_heads", size="head_dim"),),
    "T5Attention": (Count("q", "n_heads", "num_heads", "key_value_proj_dim", "inner_dim"),),
    "T5DenseActDense": (Count("wi", config="d_ff"),),
    "T5DenseGatedActDense": (Count("wi_0", config="d_ff"),),
    "ViTAttention": (Count("q_proj", "num_attention_heads", "num_attention_heads", "head_dim"),),
    "ViTMLP": (Count("fc1", config="intermediate_size"),),
    "WhisperAttention": (Count("q_proj", "num_heads", size="head_dim"),),
    "WhisperEncoderLayer": (
        Count("self_attn.q_proj", config="encoder_attention_heads", size="self_attn.head_dim"),
        Count("fc1", config="encoder_ffn_dim"),
    ),
    "WhisperDecoderLayer": (
        Count("self_attn.q_proj", config="decoder_attention_heads", size="self_attn.head_dim"),
        Count("encoder_attn.q_proj", config="decoder_attention_heads", size="encoder_attn.head_dim"),
        Count("fc1", config="decoder_ffn_dim"),
    ),
}
"""By the name of the class in ``transformers``."""


def counts(model: nn.Module) -> Iterator[tuple[Any, str, int]]:
    """Yield ``(module or config, attribute, value)`` for the unit counts that match the shapes of the layers.

    A config entry is only updated if all layers that it describes have the same count.
    """
    agreed: dict[tuple[int, str], set[int]] = {}
    configs: dict[int, Any] = {}
    for path, module in model.named_modules():
        yield from ((module, name, value) for name, value in _unit_counts(module))
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, HeadsAttention) for m in module.modules()):
            yield module, "use_nested_tensor", False  # only the fused kernel takes nested tensors
        for name, value in _unit_counts(module, of_config=True):
            for config in configs_along(model, path):
                configs[id(config)] = config
                agreed.setdefault((id(config), name), set()).add(value)
    for (key, name), values in agreed.items():
        if name in vars(configs[key]) and len(values) == 1:
            yield configs[key], name, values.pop()


def _of(module: nn.Module, table: Mapping[str, Known], default: Known) -> Known:
    """Look up the class of a ``transformers`` module in a table by its name."""
    kind = type(module)
    return table.get(kind.__name__, default) if kind.__module__.partition(".")[0] == "transformers" else default


def _unit_counts(module: nn.Module, of_config: bool = False) -> Iterator[tuple[str, int]]:
    """Yield the attributes of a module, or of its config, and their values by the shapes of its layers.

    A layer that was replaced by one of another type is skipped.
    """
    for count in _of(module, _COUNTS, ()):
        layer = module.get_submodule(count.layer)
        if type(layer) is nn.Linear or type(layer).__name__ == "Conv1D":
            inputs, outputs = widths(layer).values()
            width = inputs if count.inputs else outputs
            units = width // (attrgetter(count.size)(module) if count.size else 1)
            found = {count.config: units} if of_config else {count.attribute: units, count.width: width}
            yield from ((name, value) for name, value in found.items() if name)


def configs_along(model: nn.Module, path: str) -> Iterator[Any]:
    """Yield the configs of a module and of its parents, outermost first."""
    parts = path.split(".") if path else []
    for length in range(len(parts) + 1):
        config = vars(model.get_submodule(".".join(parts[:length]))).get("config")
        if config is not None:
            yield config
