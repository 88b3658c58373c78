"""Ids of tokens in the configs of a model, and what becomes of them in a smaller vocabulary.

Ids of special tokens (``eos_token_id``, one or a list) and of tokens that generation is forced to give should all be
kept. Those that generation should not give (``suppress_tokens``, ``bad_words_ids``) are left out where they are gone,
as the smaller model cannot give them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ignite_prune.structure.slicing.config_check import configs_of

_NEEDED = re.compile(r".*_token_ids?|(bos|eos|pad|unk|sep|cls|mask|image|audio|video)_(token_)?index|force_words_ids")
_EXCLUDED = re.compile(r"(begin_)?suppress_tokens|bad_words_ids|(lang|task)_to_id")

Find = Callable[[int], "int | None"]
"""The new id of an old one; None if it is gone."""


@dataclass(frozen=True)
class TokenIds:
    """An attribute that holds ids of tokens.

    Args:
        owner: the config or module.
        name: of the attribute.
        value: one id, or ids in lists, tuples or mappings.
        needed: the ids that the smaller vocabulary should keep.
        renumbered: the new value, from a function that gives new ids.
    """

    owner: Any
    name: str
    value: Any
    needed: Sequence[int]
    renumbered: Callable[[Find], Any]


def token_ids(model: nn.Module, layers: Sequence[nn.Embedding], size: int) -> Iterator[TokenIds]:
    """Yield the attributes with ids of tokens: ``padding_idx``, and entries of configs and ``generation_config``.

    Args:
        model: the unwrapped model.
        layers: the embeddings of its tokens, which share their weight.
        size: of its vocabulary; other numbers, such as -1, are no ids.
    """

    def all_of(value: Any) -> Callable[[Find], Any]:
        return lambda find: _mapped(value, lambda each: find(each) if _is_id(each, size) else each)

    for layer in layers:
        if (padding := layer.padding_idx) is not None:
            yield TokenIds(layer, "padding_idx", padding, [padding], all_of(padding))
    generation = vars(model).get("generation_config")
    for owner in [*configs_of(model), *([] if generation is None else [generation])]:
        for name, value in vars(owner).items():
            if _NEEDED.fullmatch(name):
                ids = [each for each in _flat(value) if _is_id(each, size)]
                yield TokenIds(owner, name, value, ids, all_of(value))
            elif name == "forced_decoder_ids" and value:  # pairs of a position and an id
                ids = [pair[1] for pair in value if _is_id(pair[1], size)]
                yield TokenIds(owner, name, value, ids, _of_pairs(value, size))
            elif name == "sequence_bias" and value:
                yield TokenIds(owner, name, value, [], _of_biases(value, size))
            elif _EXCLUDED.fullmatch(name) and value:
                yield TokenIds(owner, name, value, [], _of_left(value, size))


def _is_id(value: Any, size: int) -> bool:
    return type(value) is int and 0 <= value < size


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value of the same form, its numbers passed through a function."""
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, change) for each in value)
    return change(value)


def _of_pairs(pairs: Any, size: int) -> Callable[[Find], Any]:
    return lambda find: [[place, find(each) if _is_id(each, size) else each] for place, each in pairs]


def _of_left(value: Any, size: int) -> Callable[[Find], Any]:
    """Return a function that renumbers the entries whose ids are all left, and drops the others; None for no entry."""

    def renumbered(find: Find) -> Any:
        def is_left(entry: Any) -> bool:
            return all(find(each) is not None for each in _flat(entry) if _is_id(each, size))

        if isinstance(value, Mapping):
            left: Any = {key: each for key, each in value.items() if is_left(each)}
        else:
            left = [each for each in value if is_left(each)]
        return _mapped(left, lambda each: find(each) if _is_id(each, size) else each) or None

    return renumbered


def _of_biases(value: Any, size: int) -> Callable[[Find], Any]:
    """Return a function that renumbers ``{(ids): bias}`` or ``[[ids, bias]]`` as :func:`_of_left` does."""
    pairs = value.items() if isinstance(value, Mapping) else value

    def renumbered(find: Find) -> Any:
        new = [(_of_left([ids], size)(find), bias) for ids, bias in pairs]
        left = [(ids[0], bias) for ids, bias in new if ids]
        return (dict(left) if isinstance(value, Mapping) else [list(each) for each in left]) or None

    return renumbered
