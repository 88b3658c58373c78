"""Recipes of other tools over a run: the masks equal those of a plain program that follows the published rule."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn

from ignite_prune import recipe
from tests.golden_values import arrays
from tests.models import batches, small_net

LENGTH, EPOCHS = 4, 4
WEIGHTS = ("0.weight", "5.weight", "7.weight")


def blocks(scores, shape):
    """Scores of blocks of outputs × inputs; convolutions as (out, kh·kw·in)."""
    matrix = scores.movedim(1, -1).reshape(len(scores), -1)
    rows, columns = matrix.shape[0] // shape[0], matrix.shape[1] // shape[1]
    return matrix.view(rows, shape[0], columns, shape[1]).movedim(2, 1).reshape(rows, columns, -1).mean(-1)


def spread(keep, like, shape):
    matrix = keep.repeat_interleave(shape[0], 0).repeat_interleave(shape[1], 1)
    return matrix.view(len(like), *like.shape[2:], like.shape[1]).movedim(-1, 1) if like.ndim > 2 else matrix


def smallest(scores, count):
    """True but for the ``count`` smallest."""
    keep = torch.ones(scores.numel(), dtype=torch.bool)
    keep[scores.flatten().argsort(stable=True)[:count]] = False
    return keep.view(scores.shape)


def chosen(scores, sparsity, shape=(1, 1), together=False):
    """Masks by name at a sparsity, in each weight or together."""
    units = {name: blocks(each, shape) for name, each in scores.items()}
    if together:
        flat = torch.cat([each.flatten() for each in units.values()])
        parts = smallest(flat, round(sparsity * len(flat))).split([each.numel() for each in units.values()])
        keep = {name: part.view(units[name].shape) for name, part in zip(units, parts)}
    else:
        keep = {name: smallest(each, round(sparsity * each.numel())) for name, each in units.items()}
    return {name: spread(keep[name], scores[name], shape) for name in scores}


def of_four(scores, pruned):
    """N:M masks along the inputs: the ``pruned`` smallest of each four go."""
    found = {}
    for name, each in scores.items():
        last = each.movedim(1, -1)
        groups = last.reshape(-1, 4)
        keep = torch.stack([smallest(group, pruned) for group in groups])
        found[name] = keep.view(last.shape).movedim(-1, 1)
    return found


def plain_run(rule, snip=False):
    """Train by hand; ``rule(step, scores)`` gives new masks before a step, or None."""
    model = small_net().double()
    names = dict(model.named_parameters())
    masks = {name: torch.ones_like(names[name], dtype=torch.bool) for name in WEIGHTS}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sums = {name: torch.zeros_like(names[name]) for name in WEIGHTS}
    data = batches(LENGTH)
    for step in range(LENGTH * EPOCHS + 1):
        scores = sums if snip else {name: names[name].detach().abs() for name in WEIGHTS}
        found = rule(step, scores)
        if found is not None:
            masks = found
            for name in WEIGHTS:
                names[name].data.mul_(masks[name])
        if step == LENGTH * EPOCHS:
            return masks
        x, y = data[step % LENGTH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        for name in WEIGHTS:
            names[name].grad.mul_(masks[name])
            sums[name] = 0.9 * sums[name] + (names[name] * names[name].grad).detach().abs()
        optimizer.step()


def run_of(text, again=True):
    """The masks of a run with another tool's recipe, and with that of the pruner that it has made."""
    model = small_net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    data = [(x.double(), y) for x, y in batches(LENGTH)]
    found = recipe.read(text) if again else recipe.load(text)
    attached = found.attach(trainer, model=model, optimizer=optimizer, loader=data)
    made = recipe.Recipe.of(attached.pruner)
    trainer.run(data, max_epochs=EPOCHS)
    masks = {name: attached.pruner.masks[name] for name in attached.pruner.masks}
    attached.detach()
    if again:
        assert made.prune.handler.schedule == found.recipe.prune.handler.schedule
        assert_equal(run_of(made.dump(), again=False), masks)
    return masks


def assert_equal(found, expected):
    for name in WEIGHTS:
        assert torch.equal(found[name], expected[name]), name
    assert any(not each.all() for each in expected.values())


GMP = """
pruning_modifiers:
  - !GMPruningModifier
    init_sparsity: 0.05
    final_sparsity: 0.8
    start_epoch: 0.5
    end_epoch: 3.0
    update_frequency: 0.5
    params: {params}
    inter_func: {shape}
    mask_type: {mask}
    global_sparsity: {together}
"""
SHAPES = {
    "cubic": lambda x: 1 - (1 - x) ** 3,
    "linear": lambda x: x,
    "inverse_cubic": lambda x: 1 - (1 - x) ** (1 / 3),
}


@pytest.mark.parametrize(
    ("shape", "mask", "block", "together", "params"),
    [
        ("cubic", "unstructured", (1, 1), False, "__ALL_PRUNABLE__"),
        ("linear", "block4", (1, 4), False, "['re:.*weight']"),
        ("inverse_cubic", "[2, 2]", (2, 2), True, "['re:[057].weight']"),
    ],
)
def test_gradual_magnitude_of_sparseml(shape, mask, block, together, params):
    params = "[module.0.weight, 5.weight, 7.weight]" if "weight']" in params and shape == "linear" else params

    def rule(step, scores):
        epoch = step / LENGTH
        if step % 2 or not 0.5 <= epoch <= 3.0:
            return None
        x = (epoch - 0.5) / 2.5
        return chosen(scores, 0.05 + 0.75 * SHAPES[shape](x), block, together)

    text = GMP.format(shape=shape, mask=mask, together=together, params=params)
    assert_equal(run_of(text), plain_run(rule))


@pytest.mark.parametrize("pruned", [1, 2, 3])
def test_n_of_m_counts_what_is_pruned(pruned):
    text = f"""
    modifiers:
      - !MagnitudePruningModifier
          final_sparsity: {pruned / 4}
          start_epoch: 1
          end_epoch: 1
          mask_type: {pruned}:4
          params: __ALL_PRUNABLE__
    """
    rule = lambda step, scores: of_four(scores, pruned) if step == LENGTH else None  # noqa: E731
    assert_equal(run_of(text), plain_run(rule))


DECAYS = {
    "exp": lambda x, s: 1 - (1 - s) ** x,
    "cos": lambda x, s: s * (1 - math.cos(x * math.pi / 2)),
    "cube": lambda x, s: s * x**3,
    "linear": lambda x, s: s * x,
}


@pytest.mark.parametrize(
    ("decay", "kind", "pattern", "block", "scope"),
    [
        ("exp", "magnitude", "1x1", (1, 1), "global"),
        ("cos", "magnitude", "4x1", (4, 1), "local"),
        ("cube", "snip_momentum", "1x1", (1, 1), "global"),
        ("linear", "snip_momentum", "4x1", (4, 1), "local"),
    ],
)
def test_steps_of_neural_compressor(decay, kind, pattern, block, scope):
    begin, end, every, final = 2, 13, 3, 0.8
    total = (end - begin + every) // every - 1

    def rule(step, scores):
        if not begin <= step <= end or (step - begin) % every:
            return None
        return chosen(scores, DECAYS[decay]((step - begin) // every / total, final), block, scope == "global")

    text = f"""
    pruning_configs:
      - {{pruning_type: {kind}, pattern: {pattern}, pruning_scope: {scope}, sparsity_decay_type: {decay}}}
    target_sparsity: {final}
    start_step: {begin}
    end_step: {end}
    pruning_frequency: {every}
    """
    assert_equal(run_of(text), plain_run(rule, snip=kind == "snip_momentum"))


def test_epochs_of_neural_compressor():
    start, end, every, first, final = 1, 3, 2, 0.1, 0.6

    def rule(step, scores):
        epoch = step // LENGTH
        if step % LENGTH or not start <= epoch <= end or epoch == EPOCHS:
            return None
        part = (epoch - start + 1) // every * every / (end - start + 1)
        return chosen(scores, first + (final - first) * part)

    text = f"""
    pruning:
      approach:
        weight_compression:
          initial_sparsity: {first}
          target_sparsity: {final}
          start_epoch: {start}
          end_epoch: {end}
          frequency: {every}
          pruners:
            - !Pruner {{prune_type: basic_magnitude, names: [0.weight, 5.weight, '*.weight']}}
    """.replace(", '*.weight'", ", 7.weight")
    assert_equal(run_of(text), plain_run(rule))


def test_schedule_of_tfmot():
    config = {
        "initial_sparsity": 0.1,
        "final_sparsity": 0.7,
        "begin_step": 3,
        "end_step": 12,
        "power": 2,
        "frequency": 4,
    }

    def rule(step, scores):
        if not 3 <= step <= 12 or (step - 3) % 4:
            return None
        return chosen(scores, 0.7 + (0.1 - 0.7) * (1 - (step - 3) / 9) ** 2)

    given = {"pruning_schedule": {"class_name": "PolynomialDecay", "config": config}}
    assert_equal(run_of(given), plain_run(rule))


@pytest.mark.parametrize("decay", DECAYS)
def test_decays_are_those_of_the_program(decay):
    golden, every = arrays("schedules"), 5
    total, final, first = int(golden["total"]), float(golden["sf"]), float(golden["si"])
    text = (
        f"{{target_sparsity: {final}, init_sparsity: {first}, end_step: {total * every}, pruning_frequency: {every}, "
    )
    found = recipe.read(text + f"sparsity_decay_type: {decay}, pruning_type: magnitude}}").recipe
    values = [found.prune.handler.schedule(k * every) for k in range(total + 1)]
    np.testing.assert_allclose(values, golden[f"inc_{decay}"], rtol=1e-9, atol=1e-12)
    assert values == [found.prune.handler.schedule(k * every + 3) for k in range(total)] + [values[-1]]


def test_updates_of_tfmot_are_those_of_the_program():
    golden = arrays("schedules")
    config = {"initial_sparsity": float(golden["si"]), "final_sparsity": float(golden["sf"]), "power": 3}
    config |= {"begin_step": int(golden["begin"]), "end_step": int(golden["end"]), "frequency": int(golden["freq"])}
    found = recipe.read({"class_name": "PolynomialDecay", "config": config}).recipe.prune.handler.schedule
    steps = [int(step) for step in golden["steps"]]
    assert [found.updates_at(step) for step in steps] == golden["tfmot_poly_p3_update"].tolist()
    held = golden["poly_p3_held_between_updates"]
    np.testing.assert_allclose([found(step) for step in steps], held, rtol=1e-9, atol=1e-12)
