"""k-winners: the k largest units of each sample win; units that rarely win are boosted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune.activation.base import Sparsifier, as_sparsity_of, recomputing
from ignite_prune.activation.row_top_k import top_of_rows
from ignite_prune.schedule import Schedule


class KWinners(Sparsifier):
    r"""Passes the units with the k largest :math:`x\,e^{\beta(\hat a - d)}` of each sample, with their values.

    :math:`\hat a = k/n` is the density, d the duty cycle of a unit, :math:`\beta` the boost, which a handler can decay
    per epoch. In evaluation duty cycles are constant, and more units may win.

    Args:
        k: number of winning units of the last dimension in each row.
        density: alternatively their fraction, in (0, 1], rounded half to even, at least one unit; or a schedule of the
            sparsity.
        boost: :math:`\beta`, at least 0; 0 is no boosting.
        period: number of samples over which duty cycles are averaged.
        inference: factor of k in evaluation, at least 1, the product rounded down; 1.5 in the paper.
        positive: only values above 0 can win, as after a ReLU.

    Raises:
        TypeError, ValueError: an argument is out of range, or both or neither of ``k`` and ``density`` are given; in
            forward, ``k`` exceeds the number of units.

    Example:
        >>> layer = KWinners(density=0.25, boost=1.0)
        >>> layer(torch.tensor([[1.0, 2.0, 5.0, 3.0], [9.0, 0.0, -1.0, 2.0]]))
        tensor([[0., 0., 5., 0.],
                [9., 0., 0., 0.]])
        >>> layer.duty
        tensor([0.5000, 0.0000, 0.5000, 0.0000])

    References:
        Ahmad, Scheinkman, "How can we be so dense? The benefits of using highly sparse representations", 2019,
        arXiv 1903.11257.
    """

    boost: Tensor
    _unit_dim = -1

    def __init__(
        self,
        k: int | None = None,
        *,
        density: float | Schedule | None = None,
        boost: float = 1.5,
        period: int = 1000,
        inference: float = 1.0,
        positive: bool = False,
    ) -> None:
        if (k is None) == (density is None):
            raise ValueError(f"{type(self).__name__} takes k or density=, one of them")
        if k is not None:
            check_positive("k", k, whole=True)
        _check_at_least("boost", boost, 0)
        _check_at_least("inference", inference, 1)
        super().__init__(0.0 if density is None else as_sparsity_of(density), period, self._unit_dim)
        self.k, self.inference, self.positive, self._boosts = k, inference, positive, boost > 0
        self.register_buffer("boost", torch.tensor(float(boost)))

    def winners(self, n: int) -> int:
        """Return how many of ``n`` units win in training.

        Raises:
            ValueError: ``k`` exceeds ``n``.
        """
        if self.k is None:
            return max(round((1 - self.sparsity) * n), 1)
        if self.k > n:
            raise ValueError(f"Argument k={self.k} of {type(self).__name__} should be at most {n}, the number of units")
        self.reach(1 - self.k / n)
        return self.k

    def select(self, x: Tensor) -> Tensor:
        rows = self.as_rows(x)
        n = rows.shape[1]
        k = self.winners(n)
        if self._boosts and self.training and recomputing():
            raise ValueError(
                f"{type(self).__name__} with a boost cannot be recomputed in backward: duty cycles have moved on since "
                "the forward pass; leave it out of torch.utils.checkpoint, or take boost=0"
            )
        scores = self.as_rows(x * self._factors(x, k / n)) if self._boosts else rows
        won = top_of_rows(scores, k if self.training else min(int(self.inference * k), n))
        if self.positive:
            won &= ~(rows <= 0)
        return self.as_rows_were(won, x)

    def _factors(self, x: Tensor, density: float) -> Tensor:
        """Return the boost factors of the units, broadcastable to ``x``."""
        duty = self.duty if self.duty.numel() else self.duty.new_zeros(x.shape[self.dim])
        factors = torch.exp(self.boost * (density - duty))  # float32, which the product with half precision keeps
        return factors.view([-1 if dim == self.dim % x.ndim else 1 for dim in range(x.ndim)])

    def as_rows(self, x: Tensor) -> Tensor:
        """Return ``x`` as (rows, entries), in which the entries of a row compete."""
        return x.reshape(-1, x.shape[-1])

    def as_rows_were(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return ``rows`` in the shape of ``x``: the inverse of :meth:`as_rows`."""
        return rows.view(x.shape)

    def check_state(self) -> None:
        super().check_state()
        _check_at_least("boost", float(self.boost), 0)
        if self.boost > 0 and not self._boosts:
            raise ValueError(f"it has a boost of {float(self.boost):g}, but this one is made without")

    def extra_repr(self) -> str:
        amount = f"k={self.k}" if self.k is not None else f"density={1 - self.sparsity:g}"
        return f"{amount}, boost={float(self.boost):g}, period={self.period}"


class KWinners2d(KWinners):
    """k-winners over channels, height and width of each sample, with duty cycles and boost per channel.

    The number of spatial dimensions is arbitrary, and may be 0.

    Args:
        k: number of winners of the C · H · W values; with ``local``, of the C values at each position.
        local: select winners among the channels of each position separately.
        settings: the other arguments of :class:`KWinners`.

    Example:
        >>> x = torch.tensor([[[[1.0, 4.0]], [[3.0, 2.0]]]])  # one sample, 2 channels, 1 x 2
        >>> KWinners2d(k=2, boost=0.0)(x)
        tensor([[[[0., 4.]],
        <BLANKLINE>
                 [[3., 0.]]]])
    """

    _unit_dim = 1

    def __init__(self, k: int | None = None, *, local: bool = False, **settings: Any) -> None:
        super().__init__(k, **settings)
        self.local = local

    def as_rows(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).reshape(-1, x.shape[1]) if self.local else x.flatten(1)

    def as_rows_were(self, rows: Tensor, x: Tensor) -> Tensor:
        return rows.view(x.movedim(1, -1).shape).movedim(-1, 1) if self.local else rows.view(x.shape)


def _check_at_least(argument: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Argument {argument} should be a number, but given {value!r}")
    if not least <= value < math.inf:
        raise ValueError(f"Argument {argument} should be a finite number of at least {least}, but given {value!r}")
