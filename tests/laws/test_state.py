"""Law 7: state is plain, small, checked whole before anything changes."""

import copy
import io

import pytest
import torch

from ignite_prune import PruneHandler, pattern, saliency
from ignite_prune._utils.bits import pack, unpack
from ignite_prune._utils.pairs import from_pairs
from tests.catalogue import PATTERNS, SALIENCIES, fits, options_for
from tests.models import assert_same_bits, small_net

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file


FITTING = [
    pytest.param(row, shape, id=f"{row}-{shape}") for row in SALIENCIES for shape in PATTERNS if fits(row, shape)
]


@pytest.mark.parametrize(("row", "shape"), FITTING)
def test_round_trip_through_weights_only(row, shape):
    model = small_net()
    options = {**options_for(row, model), "pattern": shape.make(), "keep_dense": True}
    pruner = PruneHandler(model, **options)
    pruner.step(0.5 * shape.make().share)
    file = saved(pruner.state_dict())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = PruneHandler(small_net(1), **options)
    other.load_state_dict(state)
    assert all(torch.equal(mask, other.masks[n]) for n, mask in pruner.masks.items())
    assert other.sparsity == pruner.sparsity and other.param_groups[0]["sparsity"] == pruner.param_groups[0]["sparsity"]
    assert_same_bits(pruner.state_dict(), other.state_dict())
    for handler in (pruner, other):
        handler.step(0.9 * shape.make().share)


@pytest.mark.parametrize("entries", [0, 1, 7, 8, 9, 64, 1001])
def test_bits_round_trip(entries):
    mask = torch.rand(entries) > 0.5
    packed = pack(mask)
    assert packed.numel() == -(-entries // 8) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, entries), mask)


def test_one_bit_an_entry():
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(24)))
    pruner = PruneHandler(model)
    pruner.step(0.9)
    assert len(saved({"pruner": pruner.state_dict()}).getvalue()) <= 24 * 256 * 256 / 8 + 4096


def spoiled():
    """(what is done to a good state, error, its text)."""

    def edit(*path, value):
        def change(state):
            target = state
            for key in path[:-1]:
                target[key] = from_pairs(target[key])
                target = target[key]
            target[path[-1]] = value(target[path[-1]]) if callable(value) else value

        return change

    return [
        (edit("version", value=6), ValueError, r"version 6, this one reads versions up to 5; update ignite_prune"),
        (edit("version", value="1"), TypeError, r"whole 'version'"),
        (lambda state: state.pop("masks"), ValueError, r"damaged: it lacks \['masks'\]"),
        (lambda state: state.pop("dense"), ValueError, r"damaged: it lacks \['dense'\]"),
        (edit("masks", "names", value=["0.weight", "5.weight", "7.weigth"]), ValueError, r"near matches: '7.weight'"),
        (edit("masks", "names", value=lambda n: n[:2]), TypeError, r"names and shapes of one length"),
        (edit("masks", "names", value=["0.weight", "0.weight", "7.weight"]), ValueError, r"lacks \['5.weight'\]"),
        (
            edit("masks", "shapes", 1, value=[16, 64]),
            ValueError,
            r"'5.weight' has shape \[16, 64\], but the parameter \[16, 128\]",
        ),
        (edit("masks", "bits", value=lambda b: b[:-1]), ValueError, r"should be 300 bytes, but there are 299"),
        (edit("masks", "bits", value=lambda b: b.float()), TypeError, r"1-D uint8"),
        (edit("masks", "bits", value=b"os.system"), TypeError, r"1-D uint8"),
        (edit("masks", value=[1, 2]), TypeError, r"mapping with 'names', 'shapes' and 'bits'"),
        (edit("sparsities", value=[float("nan")]), ValueError, r"in \[0, 1\], but given nan"),
        (edit("sparsities", value=[0.1, 0.2]), ValueError, r"should have 1 groups"),
        (edit("progress", value={}), TypeError, r"progress"),
        (edit("progress", "done", value={"EPOCH_COMPLETED": "3"}), TypeError, r"of at least 0 by event name"),
        (edit("progress", "last", value=None), TypeError, r"whole numbers"),
        (edit("generators", 0, value=None), ValueError, r"both have a generator"),
        (edit("generators", 0, value=torch.zeros(3, dtype=torch.uint8)), ValueError, r"generator state is damaged"),
        (edit("generators", 0, value="dice"), ValueError, r"generator state is damaged"),
        (edit("dense", value={}), ValueError, r"dense values of the same parameters"),
        (edit("dense", "0.weight", value=torch.zeros(2)), ValueError, r"not as many as its mask prunes"),
        (edit("dense", "0.weight", value=3), TypeError, r"mapping of tensors"),
    ]


@pytest.mark.parametrize("index", range(len(spoiled())))
def test_a_bad_state_is_refused_and_nothing_changes(index):
    change, error, text = spoiled()[index]
    model = small_net()
    pruner = PruneHandler(model, saliency=saliency.Random(), keep_dense=True)
    pruner.step(0.3)
    state = copy.deepcopy(pruner.state_dict())
    pruner.step(0.6)
    before, weights = saved(pruner.state_dict()).getvalue(), copy.deepcopy(model.state_dict())
    change(state)
    with pytest.raises(error, match=text):
        pruner.load_state_dict(state)
    assert saved(pruner.state_dict()).getvalue() == before
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("state", [None, 3, "x", [], {}, {"version": 1}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises((TypeError, ValueError)):
        PruneHandler(small_net()).load_state_dict(state)


def test_states_of_other_settings_are_refused():
    one = PruneHandler(small_net())
    with pytest.raises(ValueError, match="other parameters"):
        PruneHandler(small_net(), params="5.weight").load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="should have 2 groups"):
        groups = [{"params": "0.weight"}, {"params": ["5.weight", "7.weight"], "pattern": pattern.Channel()}]
        PruneHandler(small_net(), params=groups).load_state_dict(one.state_dict())


def test_loading_goes_to_the_parameters_and_masks_them():
    pruner = PruneHandler(small_net())
    pruner.step(0.5)
    fresh = small_net(4)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    other = PruneHandler(fresh, optimizer)
    other.load_state_dict(pruner.state_dict())
    for name, mask in other.masks.items():
        assert not fresh.get_parameter(name)[~mask].any() and fresh.get_parameter(name)[mask].all()
        assert mask.device == fresh.get_parameter(name).device
