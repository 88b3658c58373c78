"""Models of the benchmarks' zoo that no other test builds: how much of them can go, and that slicing is right."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from ignite_prune import shrink, trace
from ignite_prune.structure.model_io import as_arguments, tensors_of
from tests.structure.test_shrink import halved, masked

pytest.importorskip("transformers")
SPEC = importlib.util.spec_from_file_location("zoo_models", Path(__file__).parents[2] / "benchmarks/zoo_models.py")
ZOO = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ZOO)

# whether units of norms go, and the least share of the layers' weights that can
MODELS = {
    "bloom": (False, 0.6),
    "ctrl": (False, 0.9),
    "electra": (True, 0.9),
    "layoutlm": (True, 0.9),
    "mistral": (False, 0.9),
    "olmo2": (True, 0.9),
    "opt": (True, 0.9),
    "phi": (False, 0.9),
    "qwen2": (True, 0.9),
    "xlm": (False, 0.9),
}


def share(model, structure):
    """Return the share of the weights that goes if each group keeps nothing."""
    masks = structure.masks({group.name: torch.zeros(group.size, dtype=torch.bool) for group in structure})
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1 and id(p) not in tables}
    gone = sum(int((~masks[name]).sum()) for name in weights if name in masks)
    return gone / sum(p.numel() for p in weights.values())


@pytest.mark.filterwarnings("ignore:Units that norms")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_sliced_right(name):
    torch.manual_seed(0)
    norms, least = MODELS[name]
    model, inputs = ZOO.models()[f"transformers:{name}"]()
    model = model.double().eval()
    args, kwargs = as_arguments(model, inputs)
    structure = trace(model, inputs, through_norms=norms)
    assert share(model, structure) >= least
    masks = structure.masks(halved(structure))
    expected = None if norms else masked(copy.deepcopy(model), masks)  # a masked norm goes over its zeros
    assert shrink(model, masks, inputs, structure=structure).error < 1e-10
    if expected is not None:
        with torch.no_grad():
            torch.testing.assert_close(tensors_of(model(*args, **kwargs)), tensors_of(expected(*args, **kwargs)))
