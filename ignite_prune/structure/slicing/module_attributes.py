"""Attributes that say how wide a module is: after slicing they say it truly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from torch import nn

from ignite_prune.structure.tracing.heads_attention import HeadsAttention

Attributes = dict[str, Any]
Known = TypeVar("Known")


def widths(module: nn.Module) -> Attributes:
    """Return what a module's attributes should be by the shapes of its tensors.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> layer.weight = nn.Parameter(layer.weight[:2])
        >>> widths(layer)
        {'in_features': 3, 'out_features': 2}
    """
    for kind, read in _WIDTHS.items():
        if isinstance(module, kind):
            return read(module)
    return _conv1d(module) if type(module).__name__ == "Conv1D" else {}


def _linear(module: Any) -> Attributes:
    outputs, inputs = module.weight.shape
    return {"in_features": inputs, "out_features": outputs}


def _conv(module: Any) -> Attributes:
    outputs, within = module.weight.shape[:2]
    groups = module.groups
    if groups == module.in_channels and groups > 1:  # depthwise: the groups go with the channels
        groups = outputs // (module.out_channels // module.in_channels)
    return {"in_channels": within * groups, "out_channels": outputs, "groups": groups}


def _conv_transpose(module: Any) -> Attributes:
    inputs, within = module.weight.shape[:2]
    return {"in_channels": inputs, "out_channels": within * module.groups}


def _batch_norm(module: Any) -> Attributes:
    tensor = module.running_mean if module.weight is None else module.weight
    return {} if tensor is None else {"num_features": len(tensor)}


def _layer_norm(module: Any) -> Attributes:
    return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}


def _group_norm(module: Any) -> Attributes:
    return {} if module.weight is None else {"num_channels": len(module.weight)}


def _embedding(module: Any) -> Attributes:
    rows, columns = module.weight.shape
    return {"num_embeddings": rows, "embedding_dim": columns}


def _prelu(module: Any) -> Attributes:
    return {"num_parameters": len(module.weight)}


def _recurrent(module: Any) -> Attributes:
    return {"input_size": module.weight_ih_l0.shape[1], "hidden_size": module.weight_hh_l0.shape[1]}


def _attention(module: Any) -> Attributes:
    embedding, inner = module.out_proj.weight.shape
    into = [module.in_proj_weight] * 2 if module.q_proj_weight is None else [module.k_proj_weight, module.v_proj_weight]
    # The last one is why layers around it may not call a kernel that reads the heads from the embedding's width.
    widths = {"embed_dim": embedding, "kdim": into[0].shape[1], "vdim": into[1].shape[1]}
    return {**widths, "num_heads": inner // module.head_dim, "_qkv_same_embed_dim": False}


def _conv1d(module: Any) -> Attributes:
    """Return the widths of transformers' Conv1D, a linear layer the other way round."""
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
    nn.MultiheadAttention: _attention,
}


def dropout_rates(model: nn.Module) -> dict[str, float]:
    """Return what each Dropout module drops, by path."""
    return {
        path: module.p for path, module in model.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    }


@dataclass(frozen=True)
class Count:
    """A count of units that a module of transformers tells, and its config.

    Args:
        layer: path of the layer below the module whose outputs are the units.
        attribute: the module's own name for how many there are.
        config: the config's name for it.
        size: path of the attribute that tells how many outputs make a unit, as of a head.
        width: the module's name for all these outputs.
        inputs: whether the units are the layer's inputs.
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
"""By the class's name, in transformers."""

_WRITTEN: dict[str, dict[tuple[str, int], str]] = {
    "GPT2Attention": {("split", 0): "split_size"},
    "T5Attention": {("zeros", 1): "n_heads"},
    "WhisperAttention": {("view", 2): "num_heads"},
}
"""Which size of which operation a class reads from which of the attributes above."""


def written(module: nn.Module, operation: str, sizes: Sequence[int]) -> int | None:
    """Return which of an operation's sizes is read from an attribute that slicing writes anew, if one is."""
    for (name, place), attribute in _of(module, _WRITTEN, {}).items():
        if name == operation and place < len(sizes) and sizes[place] == dict(_told(module)).get(attribute):
            return place
    return None


def counts(model: nn.Module) -> Iterator[tuple[Any, str, int]]:
    """Yield ``(module or config, attribute, value)``: what they should tell by the shapes of the layers.

    A config tells it where all layers that it speaks of agree.
    """
    agreed: dict[tuple[int, str], set[int]] = {}
    configs: dict[int, Any] = {}
    for path, module in model.named_modules():
        yield from ((module, name, value) for name, value in _told(module))
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, HeadsAttention) for m in module.modules()):
            yield module, "use_nested_tensor", False  # which only that kernel takes
        for name, value in _told(module, of_config=True):
            for config in _configs(model, path):
                configs[id(config)] = config
                agreed.setdefault((id(config), name), set()).add(value)
    for (key, name), values in agreed.items():
        if name in vars(configs[key]) and len(values) == 1:
            yield configs[key], name, values.pop()


def _of(module: nn.Module, table: Mapping[str, Known], default: Known) -> Known:
    """Look a class of transformers up by its name."""
    kind = type(module)
    return table.get(kind.__name__, default) if kind.__module__.partition(".")[0] == "transformers" else default


def _told(module: nn.Module, of_config: bool = False) -> Iterator[tuple[str, int]]:
    """Yield what a module's attributes, or its config, should tell; nothing of a layer that was put there instead."""
    for count in _of(module, _COUNTS, ()):
        layer = module.get_submodule(count.layer)
        if type(layer) is nn.Linear or type(layer).__name__ == "Conv1D":
            inputs, outputs = widths(layer).values()
            width = inputs if count.inputs else outputs
            units = width // (attrgetter(count.size)(module) if count.size else 1)
            told = {count.config: units} if of_config else {count.attribute: units, count.width: width}
            yield from ((name, value) for name, value in told.items() if name)


def _configs(model: nn.Module, path: str) -> Iterator[Any]:
    """Yield the configs of a module and of those around it."""
    parts = path.split(".") if path else []
    for length in range(len(parts) + 1):
        config = vars(model.get_submodule(".".join(parts[:length]))).get("config")
        if config is not None:
            yield config
