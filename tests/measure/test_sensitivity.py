"""Sensitivity and the search for sparsities: against plain loops, exact totals, and a model that is left as it was."""

import copy
import json

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, measure, pattern, prune_model, saliency, trace
from ignite_prune.measure.division import Division, moved_to_total
from tests.models import assert_same_bits, batches, small_net


def loss_on(data):
    def evaluate(model):
        with torch.no_grad():
            return float(sum(nn.functional.cross_entropy(model(x), y) for x, y in data))

    return evaluate


LOSS = loss_on(batches(2))


@pytest.fixture(scope="module")
def digits():
    """A network trained on a part of the digits, that part, and the others."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 8 - 1, torch.tensor(data.target)
    torch.manual_seed(0)
    widths = (64, 48, 40, 32, 24, 16, 10)
    layers = [layer for i, o in zip(widths, widths[1:]) for layer in (nn.Linear(i, o), nn.ReLU())][:-1]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, [(x[1000:1400], y[1000:1400])], [(x[1400:], y[1400:])]


def ranks(values):
    return torch.tensor(values).argsort().argsort().double()


def test_the_order_agrees_with_the_true_damage(digits):
    model, seen, unseen = digits
    found = measure.sensitivity(model, loss_on(seen), sparsities=[0.6, 0.8], higher_is_better=False)
    damages = []
    for name in (each.name for each in found.layers):  # by hand, on other digits
        pruned, total = copy.deepcopy(model), 0.0
        weight = pruned.get_parameter(name)
        dense = weight.detach().clone()
        for sparsity in (0.6, 0.8):
            gone = dense.abs().flatten().argsort()[: round(sparsity * dense.numel())]
            with torch.no_grad():
                weight.copy_(dense)
                weight.view(-1)[gone] = 0
            total += loss_on(unseen)(pruned)
        damages.append(total)
    scanned = [sum(found.damage(each.name, s) for s in (0.6, 0.8)) for each in found.layers]
    assert torch.corrcoef(torch.stack([ranks(scanned), ranks(damages)]))[0, 1] >= 0.8
    assert [found.layers[i].name for i in ranks(scanned).argsort()] == found.order()


def test_the_search_beats_what_it_began_with(digits):
    model, seen, _ = digits
    found = measure.search_sparsities(
        model, loss_on(seen), sparsity=0.8, sparsities=[0.5, 0.8, 0.9], evaluations=20, higher_is_better=False
    )
    assert set(found.starts) == {"greedy", "Uniform", "ERK", "LAMP", "Global"}
    assert found.value <= min(found.starts.values()) and found.starts["greedy"] < found.starts["Uniform"]
    pruned, masks = prune_model(model, found.groups, inplace=False)
    total = sum(each.numel() for name, each in model.named_parameters() if "weight" in name)
    assert sum(map(masks.kept, masks)) == total - round(0.8 * total)
    assert loss_on(seen)(pruned) == found.value


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pattern": pattern.NofM(2, 4), "sparsity": 0.3},
        {"pattern": pattern.Block((2, 2))},
        {"pattern": pattern.Channel()},
        {"params": ["5.weight", "7.*"], "saliency": saliency.Random()},
        {"structure": True},
        {"sparsity": 0.95},
        {"sparsity": 0.0},
        {"sparsity": 1.0, "params": ["7.weight"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Pruning left less")
def test_totals_are_exact(settings):
    model = small_net()
    wanted = settings.get("sparsity", 0.6)
    options = {key: value for key, value in settings.items() if key != "sparsity"}
    if "structure" in options:
        options["structure"] = trace(model, batches(1)[0][0])
    found = measure.search_sparsities(
        model, LOSS, sparsity=wanted, sparsities=[0.4], evaluations=3, higher_is_better=False, **options
    )
    kind = options.get("pattern", pattern.Unstructured())
    assert found.sparsity == pytest.approx(wanted, abs=0.05 if "structure" in options else 0.02)
    again = {key: value for key, value in options.items() if key not in ("params", "saliency")}
    _, masks = prune_model(model, found.groups, inplace=False, **again)
    if "structure" in options:
        gone = sum(int((~kept).sum()) for kept in options["structure"].kept(masks).values())
        assert gone == round(0.6 * (8 + 16))
        fresh = small_net()
        pruner = PruneHandler(fresh, None, found.groups, structure=trace(fresh, batches(1)[0][0]))
        pruner.step()
        assert_same_bits(dict(pruner.masks), dict(masks))
        return
    units, gone = 0, 0
    for name, mask in masks.items():
        size = kind.count(mask.shape)
        units += size
        gone += round(size * (1 - float(mask.double().mean())) / kind.share)
    assert gone == round(units * wanted / kind.share)
    pruner = PruneHandler(copy.deepcopy(model), None, found.groups, **again)
    if wanted:
        pruner.step()
    assert pruner.sparsity == pytest.approx(masks.sparsity)


def test_the_model_is_left_to_the_bit():
    model = small_net().train()
    model[0].weight.grad = torch.randn_like(model[0].weight)
    model[5].weight.requires_grad_(False)
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    grad, state = model[0].weight.grad, torch.get_rng_state()
    kept = dict(model.named_parameters())
    calls = []

    def rude(net):
        calls.append(net)
        net.train()
        x, y = batches(1)[0]
        nn.functional.cross_entropy(net(x), y).backward()  # BatchNorm's statistics and gradients change
        torch.rand(3)
        with torch.no_grad():
            net[7].bias.add_(1)
        value = LOSS(net)
        net[2] = nn.Tanh()
        net.half()
        if len(calls) == 4:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        measure.sensitivity(model, rude, higher_is_better=False)
    assert_same_bits(dict(before), dict(model.state_dict()))
    assert list(model.modules()) == modules and all(each.training for each in modules)
    assert all(each is kept[name] for name, each in model.named_parameters())
    assert model[0].weight.grad is grad and model[7].bias.grad is None and not model[5].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state) and all(each is model for each in calls)


def test_resume(tmp_path):
    model, path, calls = small_net(), tmp_path / "scan.json", []

    def evaluate(net):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return LOSS(net)

    options = {"sparsities": [0.5, 0.9], "higher_is_better": False}
    with pytest.raises(RuntimeError, match="out of memory"):
        measure.sensitivity(model, evaluate, path=path, **options)
    found = measure.sensitivity(model, evaluate, path=path, **options)
    assert len(calls) == 5 + 4 and found == measure.sensitivity(model, LOSS, **options)
    searched = measure.search_sparsities(model, evaluate, sparsity=0.7, evaluations=5, path=path, **options)
    once = len(calls)
    again = measure.search_sparsities(model, evaluate, sparsity=0.7, evaluations=5, path=path, **options)
    assert again == searched and len(calls) == once + 1  # the dense model, to see that it is the same
    with pytest.warns(UserWarning, match="is that file of other data"):
        measure.sensitivity(model, lambda net: 1.01 * LOSS(net), path=path, **options)
    for other in (small_net(1), model):
        with pytest.raises(ValueError, match="is of other weights, or of another saliency"):
            measure.sensitivity(other, LOSS, path=path, saliency=saliency.Magnitude(2), **options)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"scan.json' is not a file of this version"):
        measure.sensitivity(model, LOSS, path=path, **options)
    path.write_text(json.dumps([]))
    with pytest.raises(ValueError, match="not a file of this version"):
        measure.sensitivity(model, LOSS, path=path, **options)
    assert {each.name for each in tmp_path.iterdir()} == {"scan.json"}


def test_what_is_shown(capsys):
    pytest.importorskip("tqdm")
    plt = pytest.importorskip("matplotlib.pyplot")
    found = measure.sensitivity(small_net(), LOSS, sparsities=[0.5, 0.9], higher_is_better=False, progress=True)
    assert "sensitivity: 100%" in capsys.readouterr().err
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "units", "dense", "0.5", "0.9"] and len(lines) == 5
    assert {line.get_label() for line in found.plot().get_lines()} >= {"0.weight", "5.weight", "7.weight"}
    plt.close("all")


def test_a_loss_that_is_taken_for_an_accuracy_is_pointed_out(digits):
    model, seen, _ = digits
    with pytest.warns(UserWarning, match="higher_is_better=False"):
        measure.sensitivity(model, loss_on(seen), sparsities=[0.95])


def test_values_that_are_not_finite_are_the_worst():
    def evaluate(net):
        return float("nan") if not net[5].weight.all() else LOSS(net)

    options = {"sparsities": [0.5], "higher_is_better": False}
    found = measure.sensitivity(small_net(), evaluate, **options)
    assert found.order()[-1] == found.order(0.5)[-1] == "5.weight" and found.damage("5.weight", 0.5) == float("inf")
    best = measure.search_sparsities(small_net(), evaluate, sparsity=0.1, evaluations=3, **options)
    assert "5.weight" not in [each["params"][0] for each in best.groups if each["sparsity"]]


def test_moved_to_total():
    for counts in ([5, 5, 5], [0, 0, 0], [9, 9, 9], [-3, 20, 2.5]):
        for total in (0, 1, 12, 21):
            found = moved_to_total(Division((10, 10, 4), (9, 9, 3), total), counts)
            assert sum(found) == total and all(0 <= each <= most for each, most in zip(found, (9, 9, 3)))


def test_bad_arguments(tmp_path):
    model = small_net()
    structure = trace(model, batches(1)[0][0])
    before = copy.deepcopy(model.state_dict())
    for error, options in (
        (TypeError, {"evaluate": 3}),
        (TypeError, {"evaluate": lambda net: {"accuracy": 1.0}}),
        (TypeError, {"evaluate": lambda net: None}),
        (TypeError, {"evaluate": lambda net: torch.ones(2)}),
        (ValueError, {"evaluate": lambda net: float("nan")}),
        (TypeError, {"sparsities": 0.5}),
        (ValueError, {"sparsities": []}),
        (ValueError, {"sparsities": [50]}),
        (ValueError, {"sparsities": [0.9], "pattern": pattern.NofM(2, 4)}),
        (TypeError, {"pattern": "2:4"}),
        (TypeError, {"saliency": "magnitude"}),
        (saliency.MissingEvidence, {"saliency": saliency.Taylor()}),
        (ValueError, {"params": "nothing"}),
        (TypeError, {"params": {"0.weight": {"sparsity": 0.5}}}),
        (TypeError, {"structure": 3}),
        (TypeError, {"higher_is_better": "no"}),
        (TypeError, {"progress": 1}),
        (TypeError, {"path": 3}),
        (FileNotFoundError, {"path": tmp_path / "none" / "scan.json"}),
        (TypeError, {"model": "net"}),
    ):
        given = {"model": model, "evaluate": LOSS, **options}
        for call in (measure.sensitivity, lambda *a, **k: measure.search_sparsities(*a, sparsity=0.4, **k)):
            with pytest.raises(error):
                call(given.pop("model", model), given.pop("evaluate", LOSS), **given)
            given = {"model": model, "evaluate": LOSS, **options}
    for error, options in (
        (ValueError, {"sparsity": 1.2}),
        (ValueError, {"sparsity": 0.9, "pattern": pattern.NofM(2, 4)}),
        (ValueError, {"sparsity": 1.0, "structure": structure}),
        (ValueError, {"sparsity": 0.5, "structure": structure, "pattern": pattern.Coupled(round_to=8)}),
        (ValueError, {"sparsity": 0.5, "evaluations": -1}),
        (TypeError, {"sparsity": 0.5, "seed": 0.5}),
    ):
        with pytest.raises(error):
            measure.search_sparsities(model, LOSS, **options)
    found = measure.sensitivity(model, LOSS, sparsities=[0.5], higher_is_better=False)
    with pytest.raises(ValueError, match="near matches: '0.weight'"):
        found.damage("0.wieght", 0.5)
    assert_same_bits(dict(before), dict(model.state_dict()))
