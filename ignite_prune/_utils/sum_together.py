"""Several computations over ranks in step, so that all of them need as many messages as the longest one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange

T = TypeVar("T")
OverRanks = Generator[Tensor, Tensor, T]
"""Yields float64 tensors of which it is sent the sums over ranks; whole numbers below 2**53 are exact."""


def sum_together(computations: Sequence[OverRanks[T]], exchange: Exchange) -> list[T]:
    """Return the results of all computations; every rank calls it with equal ones, on numbers of its own.

    Example:
        >>> def doubled(own):
        ...     total = yield torch.tensor([own], dtype=torch.float64)
        ...     return 2 * float(total)
        >>> class OneRank:
        ...     def sum(self, tensor, what):
        ...         return tensor
        >>> sum_together([doubled(1), doubled(2)], OneRank())
        [2.0, 4.0]
    """
    results, answers = dict[int, T](), dict[int, Tensor | None](enumerate([None] * len(computations)))
    while answers:
        asked = dict[int, Tensor]()
        for index, answer in answers.items():
            try:
                asked[index] = next(computations[index]) if answer is None else computations[index].send(answer)
            except StopIteration as ended:
                results[index] = ended.value
        if asked:
            sums = exchange.sum(torch.cat([each.reshape(-1) for each in asked.values()]), "sums of scores")
            parts = torch.split(sums, [each.numel() for each in asked.values()])
            answers = {index: part.view(each.shape) for (index, each), part in zip(asked.items(), parts)}
        else:
            answers = {}
    return [results[index] for index in range(len(computations))]
