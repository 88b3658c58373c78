"""Rows of an embedding and of its head removed: the model of a smaller vocabulary, with a map of the token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.structure.kept_indices import KeptIndices
from ignite_prune.structure.slicing.block_edit import BlockEdit
from ignite_prune.structure.slicing.compare import relative_difference, run, tolerance
from ignite_prune.structure.slicing.config_check import configs_of
from ignite_prune.structure.slicing.model_edit import ModelEdit, check_free, undone_on_error
from ignite_prune.structure.slicing.shrink import Report, parameter_count
from ignite_prune.structure.special_tokens import token_ids
from ignite_prune.structure.vocabulary_tensors import heads_by_trial, named_heads, vocabulary_tensors


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The ids of a smaller vocabulary.

    Args:
        kept: ``(new size,)``, the old id of each new one, ascending.
        size: of the old vocabulary.
        report: the sizes of the model before and after.
    """

    kept: Tensor
    size: int
    report: Report

    def __len__(self) -> int:
        return len(self.kept)

    def new(self, ids: Tensor) -> Tensor:
        """Return the new ids of old ones, in any shape; negative ids (labels to ignore) stay.

        Raises:
            ValueError: an id was not kept.
        """
        found = _new(self.kept, self.size, ids)
        wrong = ids[(found < 0) & (ids >= 0)]
        if len(wrong):
            raise ValueError(f"Token {int(wrong[0])} is not in the smaller vocabulary of {len(self)} tokens")
        return found

    def old(self, ids: Tensor) -> Tensor:
        """Return the old ids of new ones, as a generated sequence; negative ids stay."""
        return torch.where(ids < 0, ids, self.kept.to(ids.device)[ids.clamp(min=0)])


def vocabulary(
    model: nn.Module,
    keep: Any,
    example_inputs: Any,
    *,
    embedding: str | None = None,
    head: str | Sequence[str] | None = None,
    optimizer: Any = None,
) -> TokenMap:
    """Keep only some tokens of a model's vocabulary, in place.

    The rows of the embedding and of the head, tied or not, its bias, ``vocab_size``, the ids of tokens in configs, also
    in lists, and ``padding_idx``, and optimizers follow. Ids that generation leaves out (``suppress_tokens``,
    ``bad_words_ids``) need not be kept. For mapped ids the outputs are those of the original model, with the logits of
    the tokens that are kept; both are run and compared.

    Args:
        model: bare, or wrapped in ``torch.compile``.
        keep: ids of the tokens to keep, ints in any order or an integer tensor.
        example_inputs: inputs of the model, with old ids that are all kept.
        embedding: path of the ``nn.Embedding`` of tokens; None: that of transformers' ``get_input_embeddings()``, or
            the model's only one.
        head: path or paths of the ``nn.Linear`` that give the logits; None: those with the embedding's weight, and
            those of as many outputs as tokens whose outputs are found to be the logits.
        optimizer: the optimizer or optimizers that train the model.

    Returns:
        The map between old and new ids, with the report.

    Raises:
        TypeError: the ids are not integers.
        ValueError: an id is out of range or missing in ``keep`` although a config or the example needs it, several
            embeddings are possible, a layer of the head's size is not called, or the outputs differ. Nothing has
            changed then.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
        >>> tokens = vocabulary(model, [2, 3, 7], torch.tensor([[2, 7]]))
        >>> model(tokens.new(torch.tensor([[7, 3]]))).shape
        torch.Size([1, 2, 3])
    """
    model = unwrap(model)
    path, layer = _embedding(model, embedding)
    layers = [each for each in model.modules() if isinstance(each, nn.Embedding) and each.weight is layer.weight]
    size = layer.num_embeddings
    kept = _ids(keep, size)
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    specials = list(token_ids(model, layers, size))
    missing = [f"{each.name} {one}" for each in specials for one in each.needed if one not in new_ids]
    if missing:
        raise ValueError(f"Argument keep should contain the special tokens of the model: {', '.join(missing)}")
    heads = None if head is None else named_heads(model, head, size)
    parameters = parameter_count(model)
    before, flops, seen = _with_ids(model, layers, example_inputs)
    if not seen:
        raise ValueError(f"The embedding {path!r} is not called by the forward pass")
    if unknown := seen - set(new_ids):
        raise ValueError(f"Argument example_inputs contains token {min(unknown)}, which is not in keep")
    heads = heads_by_trial(model, layer, kept, example_inputs) if heads is None else heads
    names = vocabulary_tensors(model, layer, heads)
    check_free(model, names)
    optimizers = as_optimizers(optimizer)
    edits = ModelEdit(model, optimizers), BlockEdit(model, optimizers)
    indices = {name: {dim: kept} for name, dim in names.items()}
    with undone_on_error(edits):
        for owner in [*model.modules(), *configs_of(model)]:
            if vars(owner).get("vocab_size") == size:
                edits[1].assign(owner, "vocab_size", len(kept))
        for each in specials:
            edits[1].assign(each.owner, each.name, each.renumbered(new_ids.get))
        edits[0].slice(indices)
        try:
            with _calling(layers, lambda ids: _new(kept, size, ids)):
                found, fewer = run(model, example_inputs, True)
            error = relative_difference(found, _of_kept(before, found, kept, size))
        except ValueError as problem:
            raise ValueError(f"The model does not run with {len(kept)} tokens: {problem}; {_NAME_THEM}") from problem
        if not error <= tolerance(model):
            raise ValueError(
                f"The model with {len(kept)} tokens differs by {error:.1e} from the original one, so it was put back: "
                f"forward() uses the ids, or the size of the vocabulary, in another way; {_NAME_THEM}"
            )
    sizes = parameters, parameter_count(model)
    return TokenMap(kept, size, Report({path: (size, len(kept))}, sizes, (flops, fewer), error, KeptIndices(indices)))


_NAME_THEM = "if other layers read tokens or give logits, give their paths, embedding= and head="


def _with_ids(
    model: nn.Module, layers: Sequence[nn.Embedding], example_inputs: Any
) -> tuple[list[Tensor], int, set[int]]:
    """Return the outputs of a model, its FLOPs, and the ids with which its embeddings are called."""
    seen: set[int] = set()

    def noted(ids: Tensor) -> Tensor:
        seen.update(ids.flatten().tolist())
        return ids

    with _calling(layers, noted):
        return *run(model, example_inputs, True), seen


@contextmanager
def _calling(layers: Sequence[nn.Embedding], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Return a context in which embeddings are called with changed ids."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": change(kwargs["input"])}

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _of_kept(before: Sequence[Tensor], found: Sequence[Tensor], kept: Tensor, size: int) -> list[Tensor]:
    """Return the outputs to expect: of the logits, which are those that became smaller, the entries of kept tokens.

    Raises:
        ValueError: outputs have an entry for each token, but none became smaller.
    """
    logits = [each.shape[-1:] == (size,) for each in before]
    smaller = [large and each.shape[-1:] == (len(kept),) for large, each in zip(logits, found)]
    if any(logits) and not any(smaller):
        raise ValueError(f"its outputs still have {size} entries, as no layer of {size} outputs was found to give them")
    return [
        each.index_select(-1, kept.to(each.device)) if number < len(smaller) and smaller[number] else each
        for number, each in enumerate(before)
    ]


def _new(kept: Tensor, size: int, ids: Tensor) -> Tensor:
    """Return the new ids; -1 for those that are not kept, negative ones stay."""
    table = torch.full((size,), -1, dtype=torch.long)
    table[kept] = torch.arange(len(kept))
    return torch.where(ids < 0, ids.long(), table.to(ids.device)[ids.long().clamp(0, size - 1)]).to(ids.dtype)


def _ids(keep: Any, size: int) -> Tensor:
    found = torch.as_tensor(list(keep) if isinstance(keep, (set, frozenset, range)) else keep)
    if found.dim() != 1 or not len(found) or found.is_floating_point() or found.dtype == torch.bool:
        raise TypeError(f"Argument keep should be a sequence of token ids, but given {keep!r:.60}")
    found = torch.tensor(sorted(set(found.tolist())))
    if not 0 <= int(found[0]) <= int(found[-1]) < size:
        wrong = int(found[0]) if found[0] < 0 else int(found[-1])
        raise ValueError(f"Argument keep should hold ids in [0, {size}), but given {wrong}")
    return found


def _embedding(model: nn.Module, path: str | None) -> tuple[str, nn.Embedding]:
    found = {name: each for name, each in model.named_modules() if isinstance(each, nn.Embedding)}
    if path is not None:
        if path not in found:
            raise ValueError(f"Argument embedding: there is no nn.Embedding {path!r}; {near(path, list(found))}")
        return path, found[path]
    getter: Callable[[], Any] | None = getattr(model, "get_input_embeddings", None)
    given = None if getter is None else getter()
    of_model = {name: each for name, each in found.items() if given is None or each is given}
    if len(of_model) != 1:
        raise ValueError(f"Argument embedding should be the path of the tokens' embedding, one of {', '.join(found)}")
    return next(iter(of_model.items()))
