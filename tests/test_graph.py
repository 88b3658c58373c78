"""The surviving connections as a graph."""

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, prune_model, to_networkx
from tests.models import Net, attention_net, small_net

networkx = pytest.importorskip("networkx")


def test_a_small_net_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model[2].weight.copy_(torch.tensor([[0.25, -4.0]]))
    masks = {"0.weight": torch.tensor([[True, True], [False, True]]), "2.weight": torch.tensor([[False, True]])}
    graph = to_networkx(model, masks)
    nodes = {
        ("0.input", 0): {"layer": "0.input", "index": 0, "kind": "input"},
        ("0.input", 1): {"layer": "0.input", "index": 1, "kind": "input"},
        ("0", 0): {"layer": "0", "index": 0, "kind": "neuron"},
        ("0", 1): {"layer": "0", "index": 1, "kind": "neuron"},
        ("2", 0): {"layer": "2", "index": 0, "kind": "neuron"},
    }
    assert dict(graph.nodes(data=True)) == nodes
    first = {"parameter": "0.weight"}
    assert {edge[:2]: edge[2] for edge in graph.edges(data=True)} == {
        (("0.input", 0), ("0", 0)): {"weight": 1.0, **first},
        (("0.input", 1), ("0", 0)): {"weight": -2.0, **first},
        (("0.input", 1), ("0", 1)): {"weight": 0.5, **first},
        (("0", 1), ("2", 0)): {"weight": -4.0, "parameter": "2.weight"},
    }
    assert networkx.has_path(graph, ("0.input", 1), ("2", 0))
    assert not networkx.has_path(graph, ("0.input", 0), ("2", 0))


def test_every_kept_weight_of_a_large_layer_is_an_edge():
    model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 1000))
    masks = prune_model(model, sparsity=0.97)
    graph = to_networkx(model, masks)
    assert len(graph) == 3000 and graph.number_of_edges() == 60_000
    row, column = masks["1.weight"].nonzero()[123].tolist()
    assert graph.edges[("0", column), ("1", row)]["weight"] == model[1].weight[row, column].item()


def test_channels_and_what_is_flattened():
    model = small_net()
    masks = dict(PruneHandler(model).masks)
    masks["0.weight"][3] = False  # a filter that nothing feeds
    masks["5.weight"] = torch.zeros(16, 128, dtype=torch.bool)
    masks["5.weight"][2, 16 * 5 : 16 * 5 + 3] = True  # three of channel 5's sixteen pixels
    graph = to_networkx(model, masks)
    assert graph.nodes["0", 3] == {"layer": "0", "index": 3, "kind": "channel"} and graph.in_degree(("0", 3)) == 0
    edge = graph.edges[("0", 5), ("5", 2)]
    assert edge["kept"] == 3
    assert edge["weight"] == pytest.approx(model[5].weight[2, 80:83].norm().item())
    kernel = graph.edges[("0.input", 1), ("0", 4)]
    assert kernel["kept"] == 9 and kernel["weight"] == pytest.approx(model[0].weight[4, 1].norm().item())
    assert graph.number_of_edges() == 7 * 4 + 1 + 4 * 16


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_and_grouped_convolutions(groups):
    for layer in (nn.Conv1d(4, 6, 2, groups=groups), nn.ConvTranspose1d(4, 6, 2, groups=groups)):
        model = nn.Sequential(layer)
        graph = to_networkx(model, dict(PruneHandler(model).masks))
        for channel in range(4):
            x = torch.zeros(1, 4, 3)
            x[:, channel] = torch.rand(3) + 0.5
            with torch.no_grad():
                reached = (layer(x) - layer(torch.zeros(1, 4, 3))).abs().sum((0, 2)) > 1e-7
            edges = {output for _, (_, output) in graph.out_edges(("0.input", channel))}
            assert edges == set(reached.nonzero().flatten().tolist())


def test_the_wiring_can_be_told():
    model = Net(None, left=nn.Linear(4, 4), right=nn.Linear(4, 4), out=nn.Linear(4, 2))
    masks = dict(PruneHandler(model).masks)
    chain = to_networkx(model, masks)
    assert chain.has_edge(("left", 0), ("right", 0))
    told = to_networkx(model, masks, follows={"right": None, "out": "left"})
    assert not told.has_edge(("left", 0), ("right", 0)) and told.has_edge(("left", 0), ("out", 1))
    assert told.has_edge(("right.input", 0), ("right", 0))


def test_layers_with_several_weights_keep_apart():
    model = attention_net()
    graph = to_networkx(model, dict(PruneHandler(model).masks))
    assert graph.number_of_edges() == 192 * 64 + 64 * 64 + 64 * 4
    model = Net(None, rnn=nn.LSTM(3, 5), out=nn.Linear(5, 2))
    graph = to_networkx(model, dict(PruneHandler(model).masks))
    assert graph.nodes["rnn.weight_ih_l0", 0]["layer"] == "rnn.weight_ih_l0"
    assert graph.number_of_edges() == 20 * 3 + 20 * 5 + 10


def test_bad_arguments():
    model = small_net()
    masks = dict(PruneHandler(model).masks)
    for error, match, wrong in (
        (TypeError, "mapping", [masks]),
        (ValueError, "7.weight", {"7.wieght": masks["7.weight"]}),
        (TypeError, "bool", {"7.weight": masks["7.weight"].float()}),
        (ValueError, "shape", {"7.weight": masks["5.weight"]}),
        (ValueError, "two dimensions", {"7.bias": torch.ones(4, dtype=torch.bool)}),
    ):
        with pytest.raises(error, match=match):
            to_networkx(model, wrong)
    with pytest.raises(ValueError, match="follows"):
        to_networkx(model, masks, follows={"7": "6"})
