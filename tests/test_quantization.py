"""A pruned model keeps its zeros through torch.ao's int8 quantization, and the page about it runs as it stands."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao import quantization

from ignite_prune import MaskStore, PruneHandler, pattern, prune_model
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*(quant|observer|Quant|reduce_range).*"),
]
PAGE = Path(__file__).parent.parent / "docs" / "quantization.md"
SHAPES = [pattern.Unstructured(), pattern.NofM(2, 4), pattern.Block((4, 1)), pattern.Channel()]


def pruned(shape, sparsity=0.5):
    model = small_net().eval()
    with torch.no_grad():
        model[1].running_mean.normal_(generator=torch.Generator().manual_seed(0))
        model[1].bias.normal_(generator=torch.Generator().manual_seed(1))
    return model, prune_model(model, sparsity=sparsity, pattern=shape)


def assert_keeps(weight, mask):
    """As integers less their zero point, and as numbers."""
    per_channel = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    zero = weight.q_per_channel_zero_points() if per_channel else torch.tensor(weight.q_zero_point())
    integers = weight.int_repr().long() - zero.long().view([-1] + [1] * (weight.ndim - 1))
    assert not integers[~mask].any() and not weight.dequantize()[~mask].any()
    assert integers[mask].any() or not mask.any()


def calibrated(model, qconfig):
    static = quantization.QuantWrapper(quantization.fuse_modules(copy.deepcopy(model), [["0", "1", "2"]]))
    static.qconfig = qconfig
    quantization.prepare(static, inplace=True)
    for x, _ in batches(2):
        static(x)
    return quantization.convert(static)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weights", ["per_channel", "per_tensor", "affine"])
def test_eager_static(shape, weights):
    model, masks = pruned(shape)
    qconfig = {
        "per_channel": quantization.get_default_qconfig("x86"),
        "per_tensor": quantization.default_qconfig,
        "affine": quantization.QConfig(
            quantization.default_observer,
            quantization.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_affine),
        ),
    }[weights]
    static = calibrated(model, qconfig)
    for name in WEIGHTS:  # the convolution with the BatchNorm folded into it
        assert_keeps(static.module[int(name[0])].weight(), masks[name])
    x = batches(1)[0][0]
    assert (static(x) - model(x)).abs().max() < 0.2 * model(x).abs().max()  # it is the model still


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eager_dynamic(shape):
    model, masks = pruned(shape)
    dynamic = quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    for name in WEIGHTS[1:]:
        assert_keeps(dynamic[int(name[0])].weight(), masks[name])


def test_dynamic_recurrent():
    lstm = nn.LSTM(8, 8)
    masks = prune_model(lstm, sparsity=0.75)
    dynamic = quantization.quantize_dynamic(nn.Sequential(lstm), {nn.LSTM}, dtype=torch.qint8)
    for name, weight in dynamic[0].get_weight().items():
        assert_keeps(weight, masks[name])


def test_fx():
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, masks = pruned(pattern.Unstructured(), 0.8)
    x = batches(1)[0][0]
    prepared = prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    static = convert_fx(prepared)
    for name in WEIGHTS:
        assert_keeps(static.get_submodule(name[0]).weight(), masks[name])


@pytest.mark.parametrize("locked", [False, True])
def test_quantization_aware_training_needs_the_lock(locked):
    model, masks = pruned(pattern.Unstructured(), 0.8)
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    qat = quantization.prepare_qat(model.train())
    optimizer = torch.optim.Adam(qat.parameters(), lr=0.01)
    weights = {name: qat.get_parameter(name) for name in WEIGHTS}
    lock = PruneHandler(qat, optimizer, WEIGHTS, masks=MaskStore.from_nonzero(weights)) if locked else None
    for batch in batches(4):
        train_step(qat, optimizer, batch)
    if lock is not None:
        assert_zero(lock, optimizer)
        lock.finalize()
    converted = quantization.convert(qat.eval())
    for name in WEIGHTS:
        weight = converted[int(name[0])].weight()
        if locked:
            assert_keeps(weight, masks[name])
        else:
            assert weight.dequantize()[~masks[name]].any()


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    space = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
    x, y, test = space["x"], space["y"], space["test"]
    right = (space["model"](x[test]).argmax(1) == y[test]).float().mean()
    for name in ("static", "dynamic", "converted"):
        assert (space[name](x[test]).argmax(1) == y[test]).float().mean() > right - 0.03 > 0.92
