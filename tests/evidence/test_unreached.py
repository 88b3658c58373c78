"""Layers that no data reaches: MissingEvidence by name, or kept as they are by request, with a warning."""

import warnings

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, allocation, prune_model, repair, saliency
from ignite_prune.saliency import MissingEvidence
from tests.models import train_step

LOSS = nn.functional.cross_entropy
WITHOUT_ROWS = (saliency.Wanda(), saliency.SparseGPT(16))


class Experts(nn.Module):
    """The third expert gets no token; with ``empty`` it is called with none."""

    def __init__(self, empty=True, conv=False):
        super().__init__()
        torch.manual_seed(0)
        layer = (lambda: nn.Conv1d(8, 8, 1)) if conv else (lambda: nn.Linear(8, 8))
        self.experts, self.out = nn.ModuleList(layer() for _ in range(3)), nn.Linear(8, 3)
        self.empty, self.conv, self.used = empty, conv, 2

    def forward(self, x):
        parts = []
        for number, expert in enumerate(self.experts):
            token = torch.arange(number, len(x), self.used) if number < self.used else torch.arange(0)
            if len(token) or self.empty:
                chosen = x[token]
                parts.append(expert(chosen.unsqueeze(2)).squeeze(2) if self.conv else expert(chosen))
        return self.out(torch.cat(parts))


DATA = [(torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0, 1, 2]))]
OPTIONS = {"sparsity": 0.5, "data": DATA, "loss_fn": LOSS, "allocation": allocation.Uniform()}


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("criterion", [*WITHOUT_ROWS, saliency.Taylor()], ids=lambda each: type(each).__name__)
def test_it_is_refused_by_name_or_kept(criterion, empty, conv):
    if empty and criterion not in WITHOUT_ROWS:
        return  # its gradient is there, and 0
    reason = "no rows, as those of an expert without tokens" if empty else "never reached it|got no gradient"
    with pytest.raises(MissingEvidence, match=rf"'experts.2.weight': .*({reason})"):
        prune_model(Experts(empty, conv), saliency=criterion, **OPTIONS)
    model = Experts(empty, conv)
    before = model.experts[2].weight.detach().clone()
    with pytest.warns(UserWarning, match=rf"^experts.2.weight: .*({reason}).*left out.*until data reaches"):
        masks = prune_model(model, saliency=criterion, unreached="keep", **OPTIONS)
    assert torch.equal(model.experts[2].weight, before) and masks.kept("experts.2.weight") == 64
    assert masks.kept("experts.0.weight") == masks.kept("experts.1.weight") == 32


@pytest.mark.parametrize("criterion", WITHOUT_ROWS, ids=lambda each: type(each).__name__)
def test_what_is_kept_is_pruned_when_data_reaches_it(criterion):
    model = Experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = PruneHandler(
        model, optimizer, saliency=criterion, allocation=allocation.Uniform(), unreached="keep",
        repair=repair.SparseGPT() if isinstance(criterion, saliency.SparseGPT) else None,
    )  # fmt: skip
    train_step(model, optimizer, DATA[0])
    with pytest.warns(UserWarning, match="experts.2.weight: its calls had no rows"):
        pruner.step(0.5)
    assert pruner.masks.kept("experts.2.weight") == 64 and pruner.masks.kept("experts.0.weight") == 32
    train_step(model, optimizer, DATA[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.step(0.5)  # told once
        model.used = 3
        train_step(model, optimizer, DATA[0])
        pruner.step(0.5)
    assert pruner.masks.kept("experts.2.weight") == pruner.masks.kept("experts.0.weight") == 32


def test_what_never_had_data_is_refused_in_any_case():
    with pytest.raises(MissingEvidence):
        PruneHandler(Experts(), saliency=saliency.Wanda(), unreached="keep").step(0.5)
    with pytest.raises(ValueError, match="unreached should be 'raise' or 'keep'"):
        PruneHandler(Experts(), unreached="skip")
    assert issubclass(MissingEvidence, ValueError)
