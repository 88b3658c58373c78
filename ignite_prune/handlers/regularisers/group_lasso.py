"""GroupLasso: training empties whole units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from ignite_prune.core.selection import inputs_first, named_parameters, unwrap
from ignite_prune.handlers.regularisers.lasso import Lasso
from ignite_prune.handlers.regularisers.param_groups import RegulariserGroup, build_strengths
from ignite_prune.pattern import Coupled, Pattern
from ignite_prune.regularise.units import CoupledUnits, WeightUnits, units_of
from ignite_prune.schedule import Schedule
from ignite_prune.update.param_groups import is_structure

if TYPE_CHECKING:
    from ignite_prune.structure import Structure


class GroupLasso(Lasso):
    r"""Penalises the norm of whole units, :math:`\alpha \sum_b \|W_b\|_2`, so that training empties some.

    The proximal form shrinks after every optimizer step,
    :math:`W_b \leftarrow \max(0, 1 - \eta\alpha / \|W_b\|_2)\, W_b` with the learning rate :math:`\eta` of the
    parameter's group: units become exactly 0. The gradient form adds :math:`\alpha W_b / \|W_b\|_2` to the gradients
    before every step, which only brings units near 0, and is scaled as gradients are by an adaptive optimizer.
    ``MaskStore.from_nonzero(model)`` returns masks of what the run has left.

    A parameter without a gradient in a step is left alone in it. Units of a structure overlap where one weight has
    slices of two groups: each norm is that before the step, and the weight is shrunk by both.

    Args:
        model: bare, DDP-wrapped or compiled.
        params: None for the weights of every linear, convolutional, recurrent and attention layer; rules; or group
            dicts ``{"params": ..., any of strength, pattern, structure, by_size, exclude}``. With a structure: the
            weights whose units are meant.
        strength: :math:`\alpha`, at least 0, or a schedule of it in the attached event's unit.
        pattern: which entries are a unit; any of ``ignite_prune.pattern``.
        structure: instead, from :func:`ignite_prune.trace`: a unit is all that goes together, biases and norms too.
        proximal: the proximal form, or else the gradient form.
        by_size: a unit's norm counts times the root of how many entries it has.
        optimizer: the optimizer(s) that train the parameters; None for whichever optimizer does.
        exclude: rules for what to leave alone.

    Raises:
        TypeError, ValueError: a bad argument.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> from ignite_prune.pattern import Channel
        >>> model = nn.Linear(8, 4)
        >>> trainer = create_supervised_trainer(
        ...     model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.mse_loss)
        >>> lasso = GroupLasso(model, strength=0.5, pattern=Channel(dim=1))
        >>> lasso.attach(trainer)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.zeros(2, 4))] * 50, max_epochs=2)
        >>> trainer.state.group_lasso
        {'penalty': 0.0, 'zero': 1.0}

    References:
        Yuan, Lin, "Model selection and estimation in regression with grouped variables", 2006; Wen, Wu, Wang, Chen, Li,
        "Learning structured sparsity in deep neural networks", 2016, arXiv 1608.03665.
    """

    NAME = "group_lasso"

    def __init__(
        self,
        model: nn.Module,
        params: Any = None,
        *,
        strength: float | Schedule,
        pattern: Pattern | None = None,
        structure: Structure | None = None,
        proximal: bool = True,
        by_size: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        exclude: Any = (),
    ) -> None:
        model = unwrap(model)
        settings = {
            "strength": strength,
            "pattern": pattern,
            "structure": structure,
            "by_size": by_size,
            "exclude": exclude,
        }
        groups = build_strengths(model, params, **settings)
        super().__init__(model, optimizer, groups, [_units(model, group) for group in groups], proximal)


def _units(model: nn.Module, group: RegulariserGroup) -> list[WeightUnits]:
    everything = named_parameters(model)
    pattern, structure = group["pattern"], group["structure"]
    if not isinstance(group["by_size"], bool):
        raise TypeError(f"Argument by_size should be a bool, but given {group['by_size']!r}")
    if (pattern is None) is (structure is None):
        raise ValueError("GroupLasso should be given pattern= or structure=, one of the two")
    if structure is None:
        if not isinstance(pattern, Pattern) or isinstance(pattern, Coupled):
            raise TypeError(
                f"Argument pattern should be one of ignite_prune.pattern (for coupled units give structure= alone), "
                f"but given {pattern!r}"
            )
        turned, fit = inputs_first(model), dict[str, Pattern]()
        for name in group["params"]:
            fit[name] = pattern.inputs_first(everything[name].dim()) if name in turned else pattern
        return [_of_pattern(name, everything[name], each) for name, each in fit.items()]
    if not is_structure(structure):
        raise TypeError(
            f"Argument structure should be what trace(model, example_inputs) gives, but given {structure!r:.60}"
        )
    return _of_structure(everything, group)


def _of_structure(everything: Mapping[str, nn.Parameter], group: RegulariserGroup) -> list[WeightUnits]:
    """Return the units that the group's parameters make; its ``"params"`` become every parameter of these units."""
    structure = group["structure"]
    assert structure is not None
    if any(structure.shapes.get(name) != parameter.shape for name, parameter in everything.items()):
        raise ValueError("Argument structure is of another model; trace(model, example_inputs) this one")
    units = structure.made_by(group["params"])
    if not units:
        raise ValueError(
            "Argument structure: no group of units is made by a selected parameter; print(structure) tells why"
        )
    touched = {slot.name for each in units for slot in each.slots}
    group["params"] = [name for name in everything if name in touched]
    shapes = {name: everything[name].shape for name in group["params"]}
    return [CoupledUnits(each, shapes) for each in units]


def _of_pattern(name: str, parameter: nn.Parameter, pattern: Pattern) -> WeightUnits:
    try:
        pattern.count(tuple(parameter.shape))
    except ValueError as error:
        raise ValueError(f"Parameter {name!r}: {error}") from None
    return units_of(name, parameter, pattern)
