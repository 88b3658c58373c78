"""Rules for the default selection: which parameters multiply inputs, by the layer's type and the parameter's name.

Weights of torch's own layers are known by type (:data:`PRUNABLE`). Layers of other libraries and of the user's own hold
their weights in parameters of any name, next to positions, tokens, scales, states and tables, which must not be pruned.
Nothing is tried out or read from values: :func:`kind_of` decides by name and shape alone, in the order of its
docstring, and what no rule knows is left dense.
"""

from __future__ import annotations

import re
from enum import IntEnum

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ignite_prune._utils.shard import is_sharded

PRUNABLE: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.modules.rnn.RNNCellBase,
    nn.MultiheadAttention,
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
OUTPUTS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Types, not kinds, of the layers that most models consist of: :func:`has_inputs_first` is False for them."""

NOT_LAYERS = re.compile(
    r"(Norm([1-3]?[dD]|2dB0|\d\w)?|Embeddings?|Embed|Embedder|Positional|Encoding|Codebook|Quantizer)$", re.ASCII
)
"""Ends of the type names of modules whose own parameters are no weights."""
ADAPTER = re.compile(r"(lora|dora|ia3)(_|$)", re.IGNORECASE)
"""Start of the names of low-rank adapters and of the modules that hold them."""


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


NEVER = _words(
    "bias biases pos position positions positional rel relative rpb ape emb embed embeds embedding embeddings encoding "
    "scale scales wscales scaling mask masks logit logits sigma rho log"
)
"""A parameter with one of these words in its name is no weight."""
WEIGHT = _words("weight weights kernel kernels proj projs projection projections matrix matrices filter filters w W")
"""A parameter whose name ends in one of these words is a weight."""
OTHER = _words(
    "token tokens cls query queries latent latents slot slots probe prompt prompts prefix ctx context register "
    "registers shift gamma gammas beta alpha gain gains temp temperature tau lambda lambdas factor gate gates gating "
    "time decay freq freqs frequencies state states hidden mem memory bank pad padding null codebook codebooks "
    "codevectors codes centers centroids means prototypes anchors transitions adj noise mean std eps init table "
    "modulation mix residual norm"
)
"""A parameter with one of these words in its name is no weight, unless its name ends in one of :data:`WEIGHT`."""
LAYER = WEIGHT | _words(
    "wq wk wv wo U q k v o r Q K V O key value qkv kv up down conv convs linear lin dense fc ff ffn mlp expert experts"
)
"""A parameter with one of these words in its name is a weight, if its first dimension is larger than 1."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_KERNEL = 11  # the largest edge of a convolution's kernel that is recognised by shape


def has_inputs_first(module: nn.Module) -> bool:
    """Return whether a layer's weight has its inputs along dim 0 and its outputs along dim 1.

    Transposed convolutions have, and transformers' ``Conv1D``. A depthwise transposed convolution has one input channel
    for its outputs, which dim 0 numbers too.

    Example:
        >>> has_inputs_first(nn.ConvTranspose2d(2, 3, 1)), has_inputs_first(nn.Conv2d(2, 3, 1))
        (True, False)
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return module.groups < module.in_channels or module.in_channels == 1
    weight = module._parameters.get("weight")
    named = type(module).__name__ == "Conv1D" and not isinstance(module, nn.modules.conv._ConvNd)
    return named and weight is not None and weight.dim() == 2 and weight.shape[1] == vars(module).get("nf")


class Kind(IntEnum):
    """What a parameter is; a parameter of several modules is the least of what it is in each."""

    DENSE = 0
    """A row of a table (``nn.Embedding``), or an adapter: never selected by default."""
    LAYER = 1
    """The weight of one of :data:`PRUNABLE`."""
    OTHER = 2
    """Known not to be a weight."""
    UNKNOWN = 3
    """No rule applies."""
    WEIGHT = 4
    """The weight of another layer."""


SELECTED = frozenset((Kind.LAYER, Kind.WEIGHT))


def words_of(name: str) -> list[str]:
    """Return the words of a parameter's name in lower case, single letters as they are.

    Example:
        >>> words_of("gate_up_proj"), words_of("posEmbed1"), words_of("W_q")
        (['gate', 'up', 'proj'], ['pos', 'embed'], ['W', 'q'])
    """
    return [word if len(word) == 1 else word.lower() for word in _WORD.findall(name)]


def kind_of(module: nn.Module, name: str, parameter: Tensor) -> Kind:
    """Return what a parameter is that a module other than torch's own layers and embeddings holds.

    1. Real floating-point tensors of which at least two dimensions are larger than 1 can be weights; others cannot.
    2. Modules whose type name ends as :data:`NOT_LAYERS` (``RMSNorm``, ``ViTEmbeddings``) have none.
    3. Names with a word of :data:`NEVER` (``rel_pos_w``, ``gate_up_proj_bias``, ``A_log``) are none.
    4. Names that end in a word of :data:`WEIGHT` (``weight``, ``gate_up_proj``, ``kernel``) are weights.
    5. Names with a word of :data:`OTHER` (``cls_token``, ``query``, ``latents``, ``gate``) are none.
    6. What is left is a weight if its first dimension is larger than 1, and it has a word of :data:`LAYER` in its name
       (``conv1_forward``, ``up``, ``w1``) or the shape of a 2-D or 3-D convolution's kernel, ``(out, in, k, k)``.

    Args:
        module: the layer.
        name: the parameter's name in it; in an ``nn.ParameterList``, the list's name and the key.
        parameter: the parameter.

    Example:
        >>> layer = nn.Module()
        >>> [kind_of(layer, name, Tensor(3, 2)).name for name in ("kernel", "cls_token", "theta")]
        ['WEIGHT', 'OTHER', 'UNKNOWN']
    """
    words = words_of(name)
    last = words[-1] if words else ""
    if NOT_LAYERS.search(type(module).__name__) or NEVER.intersection(words):
        return Kind.OTHER
    if isinstance(parameter, UninitializedParameter):  # it has no shape to decide by
        return Kind.WEIGHT if last in WEIGHT else Kind.OTHER
    shape = parameter.shape
    if sum(size > 1 for size in shape) < 2:
        return Kind.OTHER
    if not parameter.is_floating_point() or not (is_sharded(parameter) or type(parameter.data) is Tensor):
        return Kind.UNKNOWN
    if last in WEIGHT:
        return Kind.WEIGHT
    if shape[0] == 1 or OTHER.intersection(words):
        return Kind.OTHER
    is_kernel = len(shape) in (4, 5) and len(set(shape[2:])) == 1 and shape[-1] % 2 == 1 and shape[-1] <= _KERNEL
    return Kind.WEIGHT if is_kernel or LAYER.intersection(words) else Kind.UNKNOWN
