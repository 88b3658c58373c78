"""A progress bar over calibration data changes nothing but stderr."""

import pytest
import torch
from torch import nn

from ignite_prune import Calibration, prune_model, saliency
from tests.models import batches, small_net


@pytest.mark.parametrize("data", [batches(3), iter(batches(3))], ids=["list", "iterator"])
def test_a_bar_is_shown_for_each_pass(data, capsys):
    masks = []
    for progress in (True, False):
        calibration = Calibration(data if progress else batches(3), nn.functional.cross_entropy, progress=progress)
        masks.append(prune_model(small_net(), sparsity=0.5, saliency=saliency.Taylor(), calibration=calibration))
        shown = capsys.readouterr()
        assert ("calibration" in shown.err) is progress and not shown.out
    for name in masks[0]:
        assert torch.equal(masks[0][name], masks[1][name])
    with pytest.raises(TypeError, match="Argument progress should be a bool"):
        Calibration(progress=1)
