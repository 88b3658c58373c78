"""Every saliency against values of official implementations, or of the formula in float64."""

import copy
import re

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn
from torch.nn.functional import cross_entropy

from ignite_prune import PruneHandler, functional, pattern, prune_model, saliency, score
from ignite_prune.evidence.collectors.unit_removal import sampled_values
from tests.golden_values import arrays, keys, tensor
from tests.marks import CUT_SHORT

NETS = ["mlp", "conv"]
CLOSE = {"rtol": 1e-7, "atol": 1e-10}


def network(name):
    modules = [eval(line, {"nn": nn, **vars(nn)}) for line in arrays("networks")[f"{name}.arch"].tolist()]
    net = nn.Sequential(*modules).double()
    for i, module in enumerate(net):
        for part, parameter in module.named_parameters(recurse=False):
            parameter.data.copy_(tensor("networks", f"{name}.{i}.{part}"))
    return net


def whole(name):
    return tensor("networks", f"{name}.x"), tensor("networks", f"{name}.y")


def batches(name, size):
    x, y = whole(name)
    return list(zip(x.split(size), y.split(size)))


def weights(net):
    return [n for n, p in net.named_parameters() if n.endswith("weight")]


def agree(found, file, pattern_, options=CLOSE):
    """Compare scores with ``file``'s ``pattern_``, {} the index of the weight."""
    assert len(found) == 3
    for i, scores in enumerate(found.values()):
        expected = tensor(file, pattern_.format(i))
        torch.testing.assert_close(scores, expected.to(scores.dtype), **options)


@pytest.mark.parametrize("name", NETS)
def test_the_networks_are_those_of_the_reference(name):
    net, (x, y) = network(name), whole(name)
    torch.testing.assert_close(net(x), tensor("networks", f"{name}.logits"), **CLOSE)
    loss = cross_entropy(net(x), y)
    torch.testing.assert_close(loss, tensor("networks", f"{name}.loss_mean_ce"), **CLOSE)


@pytest.mark.parametrize("name", NETS)
def test_taylor(name):
    net, data = network(name), [whole(name)]
    agree(score(net, saliency=saliency.Taylor(), data=data, loss_fn=cross_entropy), "taylor", f"{name}_{{}}_abs")
    squared = saliency.Taylor(squared=True)
    agree(score(net, saliency=squared, data=data, loss_fn=cross_entropy), "taylor", f"{name}_{{}}_sq")
    units = saliency.Taylor(by_unit=True)
    agree(
        score(net, saliency=units, data=data, loss_fn=cross_entropy), "taylor", f"{name}_{{}}_out_abs_of_sum_with_bias"
    )
    units = saliency.Taylor(squared=True, by_unit=True)
    agree(
        score(net, saliency=units, data=data, loss_fn=cross_entropy), "taylor", f"{name}_{{}}_out_sq_of_sum_with_bias"
    )


@pytest.mark.parametrize("name", NETS)
def test_taylor_over_batches(name):
    net, data = network(name), batches(name, int(arrays("taylor")[f"{name}_batch_size"]))
    found = score(net, saliency=saliency.Taylor(), data=data, loss_fn=cross_entropy)
    agree(found, "taylor", f"{name}_{{}}_accum_mean_over_batches_of_abs")
    found = score(net, saliency=saliency.Taylor(squared=True), data=data, loss_fn=cross_entropy)
    agree(found, "taylor", f"{name}_{{}}_accum_mean_over_batches_of_sq")
    found = score(net, saliency=saliency.Taylor(squared=True, by_unit=True), data=data, loss_fn=cross_entropy)
    agree(found, "taylor", f"{name}_{{}}_molchanov19_out_mean_over_batches")
    moved = score(net, saliency=saliency.Movement(), data=data, loss_fn=cross_entropy)
    agree({n: s.abs() for n, s in moved.items()}, "taylor", f"{name}_{{}}_accum_abs_of_summed_grad")
    fisher = saliency.OBD(saliency.EmpiricalFisher(per_sample=False))
    found = score(net, saliency=fisher, data=data, loss_fn=cross_entropy)
    squares = {n: 2 * s / net.get_parameter(n).detach() ** 2 * len(data) for n, s in found.items()}
    agree(squares, "taylor", f"{name}_{{}}_accum_sum_of_sq_grad")


@CUT_SHORT
@pytest.mark.parametrize("name", NETS)
def test_taylor_over_training_iterations_is_that_over_the_same_batches(name):
    data = batches(name, int(arrays("taylor")[f"{name}_batch_size"]))
    for formula in (saliency.Taylor(), saliency.Gradient(), saliency.Movement(), saliency.SNIP()):
        net = network(name)
        expected = score(net, saliency=formula, data=data, loss_fn=cross_entropy)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        trainer = create_supervised_trainer(net, optimizer, cross_entropy)
        pruner = PruneHandler(net, optimizer, saliency=formula)
        pruner.attach(trainer, Events.EPOCH_COMPLETED)
        trainer.run(data, max_epochs=1)
        for parameter, scores in pruner.scores().items():
            torch.testing.assert_close(scores, expected[parameter], **CLOSE)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("density", [float(d) for d in arrays("snip")["densities"]])
def test_snip(name, density):
    net, data = network(name), [whole(name)]
    found = score(net, saliency=saliency.SNIP(), data=data, loss_fn=cross_entropy)
    agree(found, "snip", f"snip_{name}_score{{}}")
    accumulated = batches(name, int(arrays("snip")[f"{name}_batch_size"]))
    found = score(net, saliency=saliency.SNIP(), data=accumulated, loss_fn=cross_entropy)
    agree(found, "snip", f"snip_{name}_accum_score{{}}")
    expected = [tensor("snip", f"snip_{name}_d{density:g}_keepround_mask{i}") for i in range(3)]
    sparsity = 1 - sum(int(m.sum()) for m in expected) / sum(m.numel() for m in expected)
    masks = prune_model(net, sparsity=sparsity, saliency=saliency.SNIP(), data=data, loss_fn=cross_entropy)
    assert all(torch.equal(m, e) for m, e in zip(masks.values(), expected))


@pytest.mark.parametrize("name", NETS)
def test_grasp(name):
    temperature = float(arrays("grasp")["grasp_T"])
    data = [(tensor("grasp", f"grasp_{name}_X"), tensor("grasp", f"grasp_{name}_Y"))]
    formula = saliency.GraSP(temperature)
    found = score(network(name), saliency=formula, data=data, loss_fn=cross_entropy)
    agree({n: -s for n, s in found.items()}, "grasp", f"grasp_fullbatch_{name}_score_raw{{}}")
    for key in keys("grasp", f"grasp_{name}_ratio", "_nremoved_request"):
        ratio = re.search(r"ratio([\d.]+)_", key)[1]
        expected = [tensor("grasp", f"grasp_{name}_ratio{ratio}_mask{i}") for i in range(3)]
        removed, total = sum(int((~m).sum()) for m in expected), sum(m.numel() for m in expected)
        assert removed == int(arrays("grasp")[key]) - 1, "the published code removes one too few"
        masks = prune_model(network(name), sparsity=removed / total, saliency=formula, data=data, loss_fn=cross_entropy)
        assert all(torch.equal(m, e) for m, e in zip(masks.values(), expected))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("bias", [True, False])
def test_synflow(name, bias):
    start = "synflow" if bias else "synflow_nobias"
    data = [whole(name)]
    found = score(network(name), saliency=saliency.SynFlow(bias=bias), data=data)
    agree(found, "synflow", f"{start}_{name}_iter0_score{{}}")
    rounds = int(arrays("synflow")["synflow_iterations"])
    for density in arrays("synflow")["densities"]:
        expected = [tensor("synflow", f"{start}_{name}_d{density:g}_final_mask{i}") for i in range(3)]
        kept, total = sum(int(m.sum()) for m in expected), sum(m.numel() for m in expected)
        masks = prune_model(
            network(name), sparsity=1 - kept / total, saliency=saliency.SynFlow(rounds, bias=bias), data=data
        )
        assert sum(map(masks.kept, masks)) == kept
        differing = sum(int((m != e).sum()) for m, e in zip(masks.values(), expected))
        assert differing <= 4, "rounding half to even on the way may differ by an entry from the reference's rounding"


@pytest.mark.parametrize("name", ["mlp"])
def test_obd(name):
    net, data = network(name), [whole(name)]
    for curvature, stored in (
        (saliency.Exact(), "obd_saliency"),
        (saliency.GaussNewton(), "obd_gn_saliency"),
        (saliency.EmpiricalFisher(), "obd_empfisher_saliency"),
    ):
        found = score(net, saliency=saliency.OBD(curvature), data=data, loss_fn=cross_entropy)
        agree(found, "obd_obs", stored + "{}")
    batched = score(net, saliency=saliency.OBD(saliency.Exact()), data=batches(name, 8), loss_fn=cross_entropy)
    agree(batched, "obd_obs", "obd_saliency{}")
    masks = prune_model(
        copy.deepcopy(net), sparsity=0.4, saliency=saliency.OBD(saliency.Exact()), data=data, loss_fn=cross_entropy
    )
    for i, mask in enumerate(masks.values()):
        assert torch.equal(mask, tensor("obd_obs", f"obd_global40_mask{i}"))


def test_hutchinson_is_unbiased():
    net, data = network("mlp"), [whole("mlp")]
    estimates = [
        score(net, saliency=saliency.OBD(saliency.Hutchinson(250, seed)), data=data, loss_fn=cross_entropy)
        for seed in range(8)
    ]
    for i, name in enumerate(weights(net)):
        stacked, expected = torch.stack([e[name] for e in estimates]), tensor("obd_obs", f"obd_saliency{i}")
        standard_error = stacked.std(0) / len(estimates) ** 0.5
        off = (stacked.mean(0) - expected) / standard_error.clamp(min=1e-12)
        assert off.abs().median() < 1 and abs(off.mean()) < 0.5
        assert torch.corrcoef(torch.stack([stacked.mean(0).flatten(), expected.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("mb", [1, 4])
def test_obs(mb):
    net, damping = network("mlp"), float(arrays("woodfisher")["damp"])
    block = int(arrays("woodfisher")["split_block_size"])
    # A batch of mb samples as one sample: the model sees (1, mb, 20), and the loss is their mean.
    data = [(x.unsqueeze(0), y.unsqueeze(0)) for x, y in batches("mlp", mb)]

    def loss(output, target):
        return cross_entropy(output.flatten(0, 1), target.flatten())

    for size, stored in ((block, "split"), (192, "full")):
        found = score(net, ["2.weight", "4.weight"], saliency=saliency.OBS(size, damping), data=data, loss_fn=loss)
        for layer, scores in zip((1, 2), found.values()):
            key = f"mb{mb}_layer{layer}_{stored}_obs_saliency"
            if key in arrays("woodfisher"):
                torch.testing.assert_close(scores, tensor("woodfisher", key), rtol=1e-6, atol=1e-12)


def test_inc_criteria_over_training():
    file, steps, lr = "inc_criteria", int(arrays("inc_criteria")["steps"]), float(arrays("inc_criteria")["lr"])
    x, y = whole("mlp")
    for formula, stored in (
        (saliency.SNIPMomentum(), "snip_momentum"),
        (saliency.Gradient(), "gradient"),
        (saliency.Taylor(), "snip"),
    ):
        net = network("mlp")
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        pruner = PruneHandler(net, optimizer, saliency=formula)
        total = None
        for t in range(steps):
            part = (torch.arange(8 * t, 8 * t + 8)) % len(x)
            optimizer.zero_grad()
            cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
            expected = [tensor(file, f"{stored}_t{t}_layer{i}").double() for i in range(3)]
            if stored != "snip_momentum":  # the others forget; ours add up, Taylor takes the mean
                total = expected if total is None else [a + b for a, b in zip(total, expected)]
                expected = total if stored == "gradient" else [a / (t + 1) for a in total]
            for scores, e in zip(pruner.scores().values(), expected):
                torch.testing.assert_close(scores.double(), e, rtol=1e-6, atol=1e-9)


def test_movement_over_training():
    file = "movement"
    net, (x, y) = network("mlp"), whole("mlp")
    lr_s, steps = float(arrays(file)["lr_s"]), int(arrays(file)["steps"])
    optimizer = torch.optim.SGD(net.parameters(), lr=float(arrays(file)["lr_w"]))
    pruner = PruneHandler(net, optimizer, saliency=saliency.Movement(scale=lr_s))
    size = 8
    for t in range(steps):
        start = t * size % len(x)
        optimizer.zero_grad()
        loss = cross_entropy(net(x[start : start + size]), y[start : start + size])
        torch.testing.assert_close(loss, tensor(file, f"topk_nomask_loss_t{t}"), rtol=1e-8, atol=0)
        loss.backward()
        optimizer.step()
        for i, scores in enumerate(pruner.scores().values()):
            if f"topk_nomask_t{t}_S{i}" in arrays(file):
                torch.testing.assert_close(scores, tensor(file, f"topk_nomask_t{t}_S{i}"), rtol=1e-8, atol=1e-12)
    keep = float(arrays(file)["keep_fraction"])
    for i, scores in enumerate(pruner.scores().values()):
        mask = functional.mask(scores, scores.numel() - int(keep * scores.numel()), scores=scores)
        expected, untied = tensor(file, f"topk_nomask_final_mask{i}"), scores != 0  # dead units: gradient 0
        assert mask.sum() == expected.sum() and torch.equal(mask[untied], expected[untied])


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.fc1 = nn.Linear(16, 24)
        self.fc2 = nn.Linear(24, 16)
        for name, parameter in self.named_parameters():
            parameter.data.copy_(tensor("wanda", f"in_{layer}.{name}"))

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


@pytest.mark.parametrize("key", keys("wanda", "wanda_", "_l0.fc1_keep"))
def test_wanda(key):
    from ignite_prune import allocation

    kind = re.fullmatch(r"wanda_(.*)_l0.fc1_keep", key)[1]
    x = tensor("wanda", "x")
    for layer in ("l0", "l1"):  # block by block, the second sees the first one pruned
        block = Block(layer)
        expected = {n: tensor("wanda", f"wanda_{kind}_{layer}.{n}_keep") for n in ("fc1", "fc2")}
        found = score(block, saliency=saliency.Wanda(), data=[x])
        for n in expected:
            norms = tensor("wanda", f"wanda_{kind}_{layer}.{n}_scaler_row").sqrt() * len(x) ** 0.5
            weight = block.get_parameter(f"{n}.weight").detach()
            torch.testing.assert_close(found[f"{n}.weight"], weight.abs() * norms, rtol=2e-5, atol=1e-6)
        groups = {f"{n}.weight": {"sparsity": 1 - int(m.sum()) / m.numel()} for n, m in expected.items()}
        shape = pattern.Unstructured()
        if "of" in kind:
            pruned, of = map(int, kind.split("of"))
            shape = pattern.NofM(keep=of - pruned, of=of)
        masks = prune_model(
            block, groups, saliency=saliency.Wanda(), pattern=shape, allocation=allocation.Uniform(), data=[x]
        )
        for n, mask in expected.items():
            assert torch.equal(masks[f"{n}.weight"], mask), (layer, n)
        with torch.no_grad():
            x = block(x)


def test_fpgm():
    w = tensor("structured_criteria", "fpgm_w")
    found = saliency.FPGM()("w", w)
    torch.testing.assert_close(found, tensor("structured_criteria", "fpgm_sum_dist_all"), rtol=1e-8, atol=0)
    for key in keys("structured_criteria", "fpgm_norm1.0_dist", "_keep_gm"):
        expected = tensor("structured_criteria", key)
        mask = functional.mask(w, int((~expected).sum()), scores=found, pattern=pattern.Channel())
        assert torch.equal(mask.flatten(1).all(1), expected)


def test_batch_norm_scale_and_slimming_masks():
    file = "structured_criteria"
    gammas = [tensor(file, f"slim_gamma{i}") for i in range(3)]
    layers, inputs = [], 4
    for gamma in gammas:
        layers += [nn.Conv2d(inputs, len(gamma), 1, bias=False), nn.BatchNorm2d(len(gamma)), nn.ReLU()]
        layers[-2].weight.data.copy_(gamma)
        inputs = len(gamma)
    net = nn.Sequential(*layers).double()
    data = [torch.randn(2, 4, 3, 3, dtype=torch.float64)]
    found = score(net, saliency=saliency.BatchNormScale(), data=data)
    for scores, gamma in zip(found.values(), gammas):
        torch.testing.assert_close(scores, gamma.abs())
    total = sum(map(len, gammas))
    for key in keys(file, "slim_p", "_keep0"):
        p = re.search(r"slim_p([\d.]+)_", key)[1]
        expected = [tensor(file, f"slim_p{p}_keep{i}") for i in range(3)]
        removed = sum(int((~e).sum()) for e in expected)
        assert removed == int(total * float(p)) + 1, "the published rule removes one too many"
        masks = prune_model(
            copy.deepcopy(net),
            sparsity=removed / total,
            saliency=saliency.BatchNormScale(),
            pattern=pattern.Channel(),
            data=data,
        )
        assert all(torch.equal(m.flatten(1).all(1), e) for m, e in zip(masks.values(), expected))


def test_hrank():
    maps = tensor("structured_criteria", "hrank_features")
    net = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False))
    net[0].weight.data.copy_(torch.eye(6)[..., None, None])  # its maps are its input
    found = score(net, saliency=saliency.HRank(), data=list(maps))
    torch.testing.assert_close(found["0.weight"], tensor("structured_criteria", "hrank_mean_rank"))


FILE = "torchpruner_attributions"


AFTER_RELU = r"(mlp|conv)\.(\d)_after_relu_(apoz|sensitivity|taylor_abs|taylor_signed)_mean_B(\d+)"
# The file's others are of a layer's own output, a sum, or a weight norm.
ATTRIBUTIONS = keys(FILE, end="_after_relu_taylor_abs_mean_B4") + keys(FILE, end="_B32")


@pytest.mark.parametrize("key", [key for key in ATTRIBUTIONS if re.fullmatch(AFTER_RELU, key)])
def test_activations_after_the_relu(key):
    name, index, kind, size = re.fullmatch(AFTER_RELU, key).groups()
    net, data = network(name), batches(name, int(size))
    formula = {
        "apoz": saliency.APoZ(),
        "sensitivity": saliency.Sensitivity(),
        "taylor_abs": saliency.ActivationTaylor(),
        "taylor_signed": saliency.ActivationTaylor(signed=True),
    }[kind]
    found = score(net, f"{index}.weight", saliency=formula, data=data, loss_fn=cross_entropy)[f"{index}.weight"]
    expected = tensor(FILE, key)
    if kind == "apoz":
        zero = tensor(FILE, f"{name}.{index}_after_relu_apoz_fraction_zero")
        torch.testing.assert_close(found, 1 - zero, rtol=1e-9, atol=1e-12)
        return
    # TorchPruner's loss is the batch's mean: its values are 1/B of each sample's own.
    sizes = {len(x) for x, _ in data}
    if len(sizes) == 1:
        torch.testing.assert_close(found, expected * sizes.pop(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_molchanov_17(name):
    net, data = network(name), [whole(name)]
    layers = weights(net)[:2]
    for j, layer in enumerate(layers):
        for formula, stored, sign in (
            (saliency.ActivationTaylor(), "molchanov17_mean_abs", 1),
            (saliency.ActivationTaylor(signed=True), "signed_mean", -1),
        ):
            key = f"{name}_relu{j}_{stored}"
            found = score(net, layer, saliency=formula, data=data, loss_fn=cross_entropy)[layer]
            with torch.no_grad():
                z = net[: int(layer.split(".")[0]) + 2](data[0][0])
            positions = z[0, 0].numel()  # the paper takes the mean over space, ours the sum
            torch.testing.assert_close(found, sign * tensor("taylor", key) * positions, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("key", keys(FILE, end="_perms"))
def test_shapley_over_given_orders(key):
    name, index, place = re.match(r"(mlp|conv)\.(\d)_(at_layer|after_relu)", key).groups()
    orders, (x, y) = tensor(FILE, key), whole(name)
    net, cut = network(name), int(index) + (place == "after_relu") + 1
    with torch.no_grad():
        z = net[:cut](x)

        def loss(kept):
            return float(cross_entropy(net[cut:](z * kept.view(-1, *(1,) * (z.ndim - 2))), y))

        found = sampled_values(loss, orders).mean(0)
    torch.testing.assert_close(found, tensor(FILE, key.removesuffix("_perms")), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("key", keys(FILE, end="_after_relu_shapley_exact_mean"))
def test_exact_shapley(key):
    name, index = re.match(r"(mlp|conv)\.(\d)", key).groups()
    expected = tensor(FILE, key)
    net, data = network(name), batches(name, 5)
    layer = f"{index}.weight"
    found = score(net, layer, saliency=saliency.Shapley(samples=400), data=data, loss_fn=cross_entropy)[layer]
    if len(expected) <= 8:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    else:
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    # Shapley values add up to what removing everything costs.
    total = tensor(FILE, f"{name}.{index}_after_relu_loss_all_removed") - tensor(
        FILE, f"{name}.{index}_after_relu_loss_full"
    )
    torch.testing.assert_close(found.sum(), total.mean(), rtol=1e-9, atol=1e-12)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        heads = int(arrays("structured_criteria")["mha_num_heads"])
        self.attention = nn.MultiheadAttention(16, heads, batch_first=True).double()
        for name, parameter in self.attention.named_parameters():
            parameter.data.copy_(tensor("structured_criteria", f"mha_{name}"))

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_heads(per_sample, normalize):
    file = "structured_criteria"
    net, data = SelfAttention(), [(tensor(file, "mha_x"), tensor(file, "mha_target"))]
    mse = nn.functional.mse_loss
    torch.testing.assert_close(mse(net(data[0][0]), data[0][1]), tensor(file, "mha_loss"), rtol=1e-8, atol=0)
    formula = saliency.HeadImportance(normalize=normalize, per_sample=per_sample)
    found = score(net, saliency=formula, data=data, loss_fn=mse)
    stored = f"head_importance_{'mean' if per_sample else 'batch'}_abs{'_l2norm' if normalize else ''}"
    assert set(found) == {"attention.in_proj_weight", "attention.out_proj.weight"}
    for scores in found.values():
        torch.testing.assert_close(scores, tensor(file, stored), rtol=1e-8, atol=1e-14)


def test_weighted_gradient_of_neural_compressor():
    file = "structured_criteria"
    net, data = SelfAttention(), [(tensor(file, "mha_x"), tensor(file, "mha_target"))]
    found = score(
        net,
        "attention.in_proj_weight",
        saliency=saliency.Taylor(by_unit=True),
        data=data,
        loss_fn=nn.functional.mse_loss,
    )
    rows = found["attention.in_proj_weight"][32:]
    torch.testing.assert_close(rows, tensor(file, "inc_weighted_gradient_value_rows"), rtol=1e-8, atol=1e-14)
    normalised = tensor(file, "inc_weighted_gradient_value_rows_l2norm")
    torch.testing.assert_close(rows / rows.norm(), normalised, rtol=1e-8, atol=1e-14)
