"""LAMP's selection by a bracket, compared with a plain program that sorts all magnitudes."""

import numpy as np
import pytest
import torch

from ignite_prune import allocation, prune_model
from ignite_prune.allocation import lamp


class Held(torch.nn.Module):
    def __init__(self, tensors):
        super().__init__()
        self.held = torch.nn.ParameterList(map(torch.nn.Parameter, tensors))


def plain_lamp(tensors, sparsity):
    """LAMP as published, entry by entry: sort, add up squares from the largest down, rank all shares together."""
    shares = []
    for tensor in tensors:
        flat = np.abs(tensor.detach().double().numpy().ravel())
        order = np.argsort(-flat, kind="stable")
        squares = flat[order] ** 2
        found = np.empty_like(squares)
        found[order] = squares / np.maximum(np.cumsum(squares), np.finfo(float).tiny)
        shares.append(found)
    together = np.concatenate(shares)
    keep = len(together) - round(len(together) * sparsity)
    kept = np.zeros(len(together), bool)
    kept[np.argsort(-together, kind="stable")[:keep]] = True
    return [torch.from_numpy(part) for part in np.split(kept, np.cumsum([len(each) for each in shares])[:-1])]


KINDS = {
    "normal": lambda x: x,
    "heavy tails": lambda x: x**5,
    "few values": lambda x: (x * 3).round() / 3,
    "half zeros": lambda x: torch.where(x > 0, x, 0.0),
    "half precision": lambda x: x.bfloat16(),
}


def tensors(kind, equal=False):
    generator = torch.Generator().manual_seed(3)
    sizes = (9000, 21, 12000, 700)
    scales = (1.0, 0.3, 0.02, 5.0)
    found = [KINDS[kind](torch.randn(size, generator=generator)) * scale for size, scale in zip(sizes, scales)]
    return [found[0].clone() for _ in sizes] if equal else found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9])
def test_masks_are_those_of_a_full_sort(kind, sparsity):
    given = tensors(kind)
    masks = prune_model(Held(given), "*", sparsity=sparsity, allocation=allocation.LAMP())
    for name, wanted in zip(masks, plain_lamp(given, sparsity)):
        assert torch.equal(masks[name], wanted), name


def test_pruning_further_ranks_what_is_left():
    given = tensors("normal")
    model = Held(given)
    first = dict(prune_model(model, "*", sparsity=0.5, allocation=allocation.LAMP()))
    later = prune_model(model, "*", sparsity=0.95, allocation=allocation.LAMP())
    left = [torch.where(mask, tensor, 0.0) for mask, tensor in zip(first.values(), given)]
    for name, wanted in zip(later, plain_lamp(left, 0.95)):
        assert torch.equal(later[name], wanted), name


def test_most_selections_sort_a_few_scores_alone(monkeypatch):
    monkeypatch.setattr(lamp, "lamp_scores", lambda *given: pytest.fail("all scores were sorted"))
    prune_model(Held(tensors("normal")), "*", sparsity=0.9, allocation=allocation.LAMP())


def test_equal_tensors_are_ranked_by_position():
    """All shares occur several times, so that no bracket decides: the first tensors keep one more."""
    given = tensors("normal", equal=True)
    masks = prune_model(Held(given), "*", sparsity=0.9 + 2 / 36000, allocation=allocation.LAMP())
    for name, wanted in zip(masks, plain_lamp(given, 0.9 + 2 / 36000)):
        assert torch.equal(masks[name], wanted), name


def test_negative_scores_are_refused_wherever_they_are():
    scores = torch.rand(20000)
    scores[17] = -1e-3
    model = Held([torch.randn(20000), torch.randn(5000)])
    with pytest.raises(ValueError, match="LAMP needs scores of at least 0"):
        prune_model(
            model,
            "*",
            sparsity=0.9,
            allocation=allocation.LAMP(),
            saliency=lambda name, p: scores if len(p) == 20000 else p.abs(),
        )
