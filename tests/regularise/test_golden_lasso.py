"""Group lasso against Neural Compressor's and the textbook's values, and every pattern against its own group()."""

import re

import pytest
import torch

from ignite_prune import pattern, regularise
from ignite_prune.regularise.lasso import shrink_
from ignite_prune.regularise.units import GridUnits, IndexedUnits, units_of
from tests.catalogue import PATTERNS
from tests.golden_values import keys, tensor

FILE = "group_lasso"
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
BLOCKS = [tuple(map(int, re.match(r"(\d)x(\d)_", key).groups())) for key in keys(FILE, end="_block_norm")]


@pytest.mark.parametrize("block", BLOCKS)
def test_norms_and_gradient(block):
    w, name = tensor(FILE, "w"), "{}x{}".format(*block)
    shape = pattern.Block(block)
    torch.testing.assert_close(regularise.norms(w, shape), tensor(FILE, f"{name}_block_norm").flatten(), **CLOSE)
    term = regularise.gradient(w, shape, float(tensor(FILE, "alpha")))
    torch.testing.assert_close(term, tensor(FILE, f"{name}_subgradient_term"), **CLOSE)
    with_grad = (tensor(FILE, "grad") + term) * (w != 0)  # the reference locks its zeros
    torch.testing.assert_close(with_grad, tensor(FILE, f"{name}_frobenius_new_grad"), **CLOSE)


def after_a_plain_step():
    return tensor(FILE, "w") - tensor(FILE, "lr") * tensor(FILE, "grad")


@pytest.mark.parametrize("block", BLOCKS)
def test_proximal(block):
    name, shape = "{}x{}".format(*block), pattern.Block(block)
    w = regularise.proximal_(after_a_plain_step(), shape, float(tensor(FILE, f"{name}_prox_threshold")))
    torch.testing.assert_close(w, tensor(FILE, f"{name}_prox_w"), **CLOSE)
    zero = tensor(FILE, f"{name}_prox_zero_blocks")
    assert torch.equal(regularise.norms(w, shape) == 0, zero.flatten())


def test_proximal_by_size():
    w, threshold = after_a_plain_step(), float(tensor(FILE, "rows_sqrtsize_prox_threshold"))
    units = units_of("w", w, pattern.Channel())
    shrink_(units, {"w": w}, {"w": threshold / w.shape[1] ** 0.5}, by_size=True)
    torch.testing.assert_close(w, tensor(FILE, "rows_sqrtsize_prox_w"), **CLOSE)


def test_single_entries_are_a_soft_threshold():
    w = regularise.proximal_(after_a_plain_step(), pattern.Unstructured(), float(tensor(FILE, "4x1_prox_threshold")))
    torch.testing.assert_close(w, tensor(FILE, "l1_prox_w"), **CLOSE)


SHAPES = {"linear": (8, 16), "conv": (8, 4, 3, 3)}


def fits(row, shape):
    try:
        row.make().count(SHAPES[shape])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("row", "shape"),
    [pytest.param(row, shape, id=f"{row}-{shape}") for row in PATTERNS for shape in SHAPES if fits(row, shape)],
)
@pytest.mark.parametrize("memory_format", ["contiguous", "transposed"])
def test_any_pattern(row, shape, memory_format):
    # The sum of squares over what a unit loses, however the pattern lays it out, in a view or asked by masks.
    units = row.make()
    w = torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if memory_format == "transposed":
        w = w.movedim(1, -1).contiguous().movedim(-1, 1)
    kinds = [GridUnits("w", units, tuple(w.shape)), IndexedUnits("w", units)]
    for kind in kinds:
        found = kind.squares({"w": w})
        assert found.numel() == units.count(w.shape)
        none = torch.zeros(units.group(w.abs(), None).shape, dtype=torch.bool)
        going = ~units.spread(none, w.abs(), None)
        torch.testing.assert_close(found.sum(), (w.square() * going).sum())
        # each unit shrinks by the threshold, and all else stays
        shrunk, threshold = w.clone(memory_format=torch.preserve_format), float(found.sqrt().median())
        shrink_(kind, {"w": shrunk}, {"w": threshold})
        assert torch.equal(shrunk[~going], w[~going])
        assert shrunk[going].eq(0).any() or row.name == "kernel_max"
        left = (found.sqrt() - threshold).clamp(min=0)
        torch.testing.assert_close(shrunk[going].square().sum(), left.square().sum())
    torch.testing.assert_close(*(kind.squares({"w": w}).flatten().sort().values for kind in kinds))


def test_a_pattern_of_ones_own():
    class Diagonals(pattern.Unstructured):
        """Units are the diagonals, all round."""

        def _unit(self, shape):
            rows, columns = shape
            return (torch.arange(columns) - torch.arange(rows)[:, None]) % columns

        def count(self, shape):
            return shape[1]

        def group(self, scores, mask):
            return scores.new_zeros(scores.shape[1]).index_add_(0, self._unit(scores.shape).flatten(), scores.flatten())

        def spread(self, kept, scores, mask):
            return kept[self._unit(scores.shape)]

        def grid(self, shape):
            return None

    w = torch.tensor([[3.0, 1.0], [1.0, 4.0]])
    torch.testing.assert_close(regularise.norms(w, Diagonals()), torch.tensor([5.0, 2**0.5]))
    torch.testing.assert_close(regularise.proximal_(w, Diagonals(), 2.5), torch.tensor([[1.5, 0.0], [0.0, 2.0]]))
