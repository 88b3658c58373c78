"""Masks of the fast selection are, bit for bit, those of a plain stable sort: types, ties, layouts, empty tensors."""

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, pattern
from ignite_prune._utils.bits import is_masked, pack, unpack
from ignite_prune.allocation.lamp import lamp_scores

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
GENERATOR = torch.Generator().manual_seed(0)
VALUES = {
    "normal": lambda *shape: torch.randn(shape, generator=GENERATOR),
    "ties": lambda *shape: torch.randint(0, 3, shape, generator=GENERATOR).float() * torch.tensor(-1.0),  # −0.0 too
    "zeros": lambda *shape: torch.zeros(shape),
    "transposed": lambda *shape: torch.randn(shape[::-1], generator=GENERATOR).permute(*reversed(range(len(shape)))),
    "small": lambda *shape: torch.rand(shape, generator=GENERATOR) * 1e-42,
}


def plain_n_of_m(shape, scores, mask, kept):
    """One group after the other."""
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    rows = scores.movedim(shape.dim, -1).reshape(-1, shape.of)
    order = rows.sort(dim=1, descending=True, stable=True).indices
    best = torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, order[:, : shape.keep], True)
    moved = scores.movedim(shape.dim, -1).shape
    found = (best | kept.reshape(-1, 1)).view(moved).movedim(-1, shape.dim)
    return found if mask is None else found & mask


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (pattern.NofM(2, 4), (6, 16)),
        (pattern.NofM(4, 8, dim=0), (8, 5)),
        (pattern.NofM(1, 4), (3, 8, 3, 3)),
        (pattern.NofM(3, 16), (64, 4096)),  # several pieces
        (pattern.NofM(8, 32), (4, 64)),  # sorted
        (pattern.NofM(1, 2), (0, 4)),
    ],
    ids=str,
)
def test_n_of_m_is_that_of_a_sort(shape, size, values, dtype):
    scores = VALUES[values](*size).to(dtype).abs()
    for mask in (None, torch.rand(size, generator=GENERATOR) > 0.4):
        units = shape.group(scores, mask)
        least = shape._groups(scores if mask is None else scores.masked_fill(~mask, -torch.inf)).sort(-1).values
        least = least[..., : shape.of - shape.keep]
        assert torch.equal(units, least.masked_fill(least == -torch.inf, 0).sum(-1))
        kept = torch.rand(units.shape, generator=GENERATOR) > 0.5
        dead = torch.zeros_like(kept) if mask is None else ~shape.alive(mask)
        assert torch.equal(shape.spread(kept, scores, mask), plain_n_of_m(shape, scores, mask, kept | dead))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("values", VALUES)
def test_lamp_scores_are_those_of_a_sort(values, dtype):
    scores = VALUES[values](40, 70).to(dtype).abs()
    for alive in (None, torch.rand(40, 70, generator=GENERATOR) > 0.4):
        squares = scores.double().square() if alive is None else scores.double().square().masked_fill(~alive, 0)
        ordered, order = squares.flatten().sort(descending=True, stable=True)
        shares = ordered / ordered.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        assert torch.equal(lamp_scores(scores, alive).flatten()[order], shares)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("values", ["normal", "ties", "transposed"])
def test_an_update_in_pieces_is_that_of_a_sort(values, dtype):
    model = nn.ParameterDict({"a": VALUES[values](300, 1000).to(dtype), "b": VALUES["normal"](7, 11).to(dtype)})
    scores = torch.cat([p.detach().abs().flatten().double() for p in model.values()])
    pruner = PruneHandler(model, params="*")
    for sparsity in (0.3, 0.9):
        pruner.step(sparsity)
        kept = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        best = scores.sort(descending=True, stable=True).indices[: len(scores) - round(sparsity * len(scores))]
        assert torch.equal(kept, torch.zeros_like(kept).index_fill_(0, best, True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_in_any_piece(bad):
    model = nn.ParameterDict({"a": torch.ones(300, 1000)})
    with torch.no_grad():
        model["a"][299, 998] = bad
    with pytest.raises(ValueError, match="'a' has 1 of 300000 values"):
        PruneHandler(model, params="*").step(0.5)


@pytest.mark.parametrize("dtype", [*TYPES, torch.complex64, torch.complex128], ids=str)
def test_a_weight_is_masked_or_not(dtype):
    mask = torch.rand(500, 600, generator=GENERATOR) > 0.9
    weight = torch.where(mask, torch.ones(500, 600), -0.0).to(dtype)
    assert is_masked(weight, mask) and is_masked(weight.t(), mask.t())
    weight.view(-1)[int(mask.logical_not().flatten().nonzero()[-1])] = float("nan")
    assert not is_masked(weight, mask)


@pytest.mark.parametrize("entries", [0, 1, 8, 13, 4097])
def test_packed_bits_begin_with_the_lowest(entries):
    mask = torch.rand(entries, generator=GENERATOR) > 0.5
    bits = [sum(int(bit) << place for place, bit in enumerate(mask[i : i + 8])) for i in range(0, entries, 8)]
    assert pack(mask).tolist() == bits and torch.equal(unpack(pack(mask), entries), mask)
