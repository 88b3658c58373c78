"""N:M and block masks against jaxpruner's and Neural Compressor's."""

import re

import pytest
import torch

from ignite_prune import functional, pattern
from tests.golden_values import keys, tensor

FILE = "nm_block_masks"


@pytest.mark.parametrize("key", keys(FILE, "nm_linear_keep") + keys(FILE, "nm_conv_keep"))
def test_n_of_m(key):
    layer, keep, of = re.fullmatch(r"nm_(\w+)_keep(\d)of(\d)", key).groups()
    shape = pattern.NofM(keep=int(keep), of=int(of))
    mask = functional.mask(tensor(FILE, f"nm_{layer}_w"), shape.share, pattern=shape)
    assert torch.equal(mask, tensor(FILE, key))


@pytest.mark.parametrize("key", keys(FILE, "inc_linear_pattern") + keys(FILE, "inc_conv_pattern"))
def test_neural_compressor_names_what_is_pruned(key):
    layer, pruned, of = re.fullmatch(r"inc_(\w+)_pattern_(\d)to(\d)_keep", key).groups()
    shape = pattern.NofM(keep=int(of) - int(pruned), of=int(of))
    mask = functional.mask(tensor(FILE, f"nm_{layer}_w"), shape.share, pattern=shape)
    assert torch.equal(mask, tensor(FILE, key))


def reordered_twice(mask):
    """The reference's masks of convolutions went from (out, kh, kw, in) to (out, in, kh, kw) twice.

    Its scores, which lie as ours do, show it: under "max" its mask as stored prunes the largest weight of all.
    """
    if mask.ndim == 2:
        return mask
    out, channels, *kernel = mask.shape
    return mask.reshape(out, *kernel, channels).movedim(-1, 1)


INC_BLOCKS = [key for key in keys(FILE, "inc_block_") if re.search(r"_(sum|mean|max)_s[\d.]+$", key)]


@pytest.mark.parametrize("key", INC_BLOCKS)
def test_neural_compressor_blocks(key):
    layer, rows, columns, reduce, s = re.fullmatch(r"inc_block_(\w+)_(\d+)x(\d+)_(\w+)_s([\d.]+)", key).groups()
    w = tensor(FILE, f"block_{layer}_w")
    shape = pattern.Block((int(rows), int(columns)), reduce=reduce)
    expected = tensor(FILE, key)
    pruned = int((~expected).sum()) // (int(rows) * int(columns))
    assert pruned == int(shape.count(w.shape) * float(s)), "the reference rounds down"
    assert torch.equal(reordered_twice(functional.mask(w, pruned, pattern=shape)), expected)


@pytest.mark.parametrize("key", keys(FILE, "inc_block_", "_score_sum"))
def test_neural_compressor_block_scores(key):
    layer, rows, columns = re.fullmatch(r"inc_block_(\w+)_(\d+)x(\d+)_score_sum", key).groups()
    w = tensor(FILE, f"block_{layer}_w")
    units = pattern.Block((int(rows), int(columns)), reduce="sum").group(w.abs(), None)
    torch.testing.assert_close(units, tensor(FILE, key), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("key", keys(FILE, "jaxpruner_block_"))
def test_jaxpruner_blocks_hold_whole_kernels(key):
    layer, rows, columns, reduce = re.match(r"jaxpruner_block_(\w+?)_(\d+)x(\d+)_(sum|max)_s", key).groups()
    w = tensor(FILE, f"block_{layer}_w")
    shape = pattern.Block((int(rows), int(columns), *w.shape[2:]), reduce=reduce)
    expected = tensor(FILE, key)
    pruned = int((~expected).sum()) * shape.count(w.shape) // w.numel()
    assert torch.equal(functional.mask(w, pruned, pattern=shape), expected)


@pytest.mark.parametrize("key", keys(FILE, "jaxpruner_tie_mask"))
def test_ties_keep_the_lower_index(key):
    scores, expected = tensor(FILE, "jaxpruner_tie_scores"), tensor(FILE, key)
    assert torch.equal(functional.mask(scores, int((~expected).sum()), scores=scores), expected)


@pytest.mark.parametrize("key", keys(FILE, "inc_global_4x1", "_a"))
def test_global_blocks(key):
    from ignite_prune import prune_model

    model = torch.nn.Module()
    model.a = torch.nn.Parameter(tensor(FILE, "block_linear_w"))
    model.b = torch.nn.Parameter(tensor(FILE, "block_conv_w"))
    block = pattern.Block((4, 1), reduce="mean")
    total = block.count(model.a.shape) + block.count(model.b.shape)
    s = float(re.search(r"_s([\d.]+)_", key)[1])
    masks = prune_model(model, "*", sparsity=int(total * s) / total, pattern=block)
    assert torch.equal(masks["a"], tensor(FILE, key))
    assert torch.equal(reordered_twice(masks["b"]), tensor(FILE, key[:-1] + "b"))
