"""Masks and weights are those of a plain program that follows the published order."""

import copy

import pytest
import torch

from ignite_prune import pattern, prune_blocks, repair, saliency
from tests.blocks import plain
from tests.blocks.nets import GPT, Llama, made, tokens

NETS = {GPT: "h.*", Llama: "layers.*"}
TWO_FOUR = {"pattern": pattern.NofM(keep=2, of=4)}
SPARSEGPT = {"saliency": saliency.SparseGPT(block=8), "repair": repair.SparseGPT(block=8)}
METHODS = {
    "wanda": (plain.wanda(0.5), {}),
    "wanda 2:4": (plain.wanda_2_4, TWO_FOUR),
    "sparsegpt": (plain.sparsegpt(0.5, 8), SPARSEGPT),
    "sparsegpt 2:4": (plain.sparsegpt(0.5, 8, groups=True), SPARSEGPT | TWO_FOUR),
}


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_published_order(net, method, sequential):
    model, (layer, settings) = made(net), METHODS[method]
    expected = copy.deepcopy(model)
    plain.prune(expected, list(expected.get_submodule(NETS[net][:-2])), tokens(), layer, sequential)
    masks = prune_blocks(model, NETS[net], data=tokens(), sparsity=0.5, sequential=sequential, **settings)
    for name, parameter in expected.named_parameters():
        found = model.get_parameter(name)
        torch.testing.assert_close(found, parameter, rtol=1e-9, atol=1e-12)
        if name in masks:
            assert torch.equal(masks[name], parameter != 0) and torch.equal(found != 0, parameter != 0)
    assert masks.sparsity == 0.5 and len(masks) == 3 * (4 if net is GPT else 7)
