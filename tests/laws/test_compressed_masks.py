"""Checkpoints with compressed masks: as small as promised, the same bits back, either form read, damage refused."""

import contextlib
import copy
import io
import math
import sys

import pytest
import torch
from torch import nn

from ignite_prune import MaskStore, PruneHandler, pattern, prune_model
from tests.models import assert_same_bits, small_net

pytest.importorskip("numpy")


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True), len(file.getvalue())


@pytest.mark.parametrize(
    "pattern_, sparsity, most",
    [
        (pattern.Unstructured(), 0.9, 0.5),
        (pattern.Unstructured(), 0.0, 0.01),
        (pattern.Unstructured(), 0.5, 1.01),
        (pattern.NofM(2, 4), 0.5, 0.76),
        (pattern.Block((4, 4)), 0.9, 0.1),
    ],
    ids=str,
)
def test_size_and_bits(pattern_, sparsity, most):
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 256))
    pruner = PruneHandler(model, pattern=pattern_, compress_masks=True)
    pruner.step(sparsity)
    state, _ = saved(pruner.state_dict())
    size = sum(data.nbytes for _, data in state["masks"]["codes"])
    assert 8 * size <= most * pruner.masks.numel
    for compress in (False, True):
        other = PruneHandler(copy.deepcopy(model), pattern=pattern_, compress_masks=compress)
        other.load_state_dict(state)
        assert_same_bits(dict(other.masks), dict(pruner.masks))
        assert_same_bits(other.state_dict()["progress"], pruner.state_dict()["progress"])


def test_the_whole_checkpoint_is_smaller():
    model = nn.Linear(1024, 1024)
    sizes = {}
    for compress in (False, True):
        pruner = PruneHandler(model, compress_masks=compress)
        pruner.step(0.9)
        sizes[compress] = saved(pruner.state_dict())[1]
    assert sizes[True] < 0.5 * sizes[False] + 4096 and 8 * sizes[True] < 0.5 * 1024**2


def test_a_state_without_compression_is_read_and_of_the_last_version_too():
    plain = PruneHandler(small_net())
    plain.step(0.8)
    state = plain.state_dict()
    for version in (4, 5):
        other = PruneHandler(small_net(), compress_masks=True)
        other.load_state_dict({**state, "version": version})
        assert_same_bits(dict(other.masks), dict(plain.masks))
    masks = prune_model(small_net(), sparsity=0.5)
    store = MaskStore(masks.parameters)
    store.load_state_dict(masks.state_dict(compress=True))
    assert_same_bits(dict(store), dict(masks))


def edited(state, *path, value):
    state = copy.deepcopy(state)
    inner = state["masks"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value(inner[path[-1]])
    return state


def test_damage_is_refused_and_changes_nothing():
    pruner = PruneHandler(small_net(), compress_masks=True)
    pruner.step(0.8)
    state = pruner.state_dict()
    text, data = state["masks"]["codes"][1]
    other = PruneHandler(small_net(1))
    other.step(0.3)
    before = copy.deepcopy((other.state_dict(), dict(other.pruning.model.state_dict())))
    for error, path, value in (
        (ValueError, ("codes", 1), lambda _: (text, data[:-1])),
        (ValueError, ("codes", 1), lambda _: (text, data[:0])),
        (ValueError, ("codes", 1), lambda _: (text[:-1], data)),
        (ValueError, ("codes", 1), lambda _: ("[]", data)),
        (ValueError, ("codes", 1), lambda _: ('{"code": "blocks", "block": [0, 1], "of": {}}', data)),
        (ValueError, ("codes", 1), lambda _: ('{"code": "constant", "value": "no"}', data)),
        (ValueError, ("codes", 1), lambda _: (text.replace('"low": ', '"low": 1'), data)),
        (ValueError, ("codes", 1), lambda _: state["masks"]["codes"][0]),
        (TypeError, ("codes", 1), lambda _: text),
        (TypeError, ("codes", 1), lambda _: (text, data.float())),
        (TypeError, ("codes",), lambda codes: codes[:-1]),
        (TypeError, ("codes",), lambda _: None),
        (ValueError, ("shapes", 1), lambda _: [1, 1]),
        (ValueError, ("names", 1), lambda _: "other"),
    ):
        with pytest.raises(error):
            other.load_state_dict(edited(state, *path, value=value))
    assert_same_bits(before, (other.state_dict(), dict(other.pruning.model.state_dict())))
    torch.manual_seed(0)
    for _ in range(60):  # any damaged byte gives an error or another mask of the same shape, never a crash
        flipped = data.clone()
        flipped[int(torch.randint(len(data), ()))] ^= 1 << int(torch.randint(8, ()))
        with contextlib.suppress(ValueError):
            MaskStore(pruner.masks.parameters).load_state_dict(
                edited(state, "codes", 1, value=lambda _: (text, flipped))["masks"]
            )


def test_arguments(monkeypatch):
    with pytest.raises(TypeError, match="compress_masks should be a bool"):
        PruneHandler(small_net(), compress_masks="yes")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'ignite-prune\[export\]'"):
        PruneHandler(small_net(), compress_masks=True)


def test_parameters_without_entries_or_dimensions():
    masks = {"none": torch.ones(0, 3, dtype=torch.bool), "one": torch.tensor(True), "two": torch.tensor([True, False])}
    store = MaskStore({name: nn.Parameter(torch.ones(mask.shape)) for name, mask in masks.items()}, masks)
    again = MaskStore(store.parameters)
    again.load_state_dict(saved(store.state_dict(compress=True))[0])
    assert_same_bits(dict(again), dict(store))
    assert math.prod(again["none"].shape) == 0
