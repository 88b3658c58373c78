"""Modifiers that do not prune, and their counterparts in Ignite."""

from __future__ import annotations

from collections.abc import Callable

from ignite_prune.recipe.dialects.modifiers import Modifier
from ignite_prune.recipe.dialects.report import Outcome

Answer = tuple[Outcome, str]


def _fixed(outcome: Outcome, why: str) -> Callable[[Modifier], Answer]:
    return lambda modifier: (outcome, why)


def _epochs(modifier: Modifier) -> Answer:
    end = modifier.fields.get("end_epoch")
    return "translated", f"epochs: {end}; trainer.run(loader, max_epochs={end})"


def _set_rate(modifier: Modifier) -> Answer:
    rate, start = modifier.fields.get("learning_rate"), modifier.fields.get("start_epoch", 0)
    return "handed on", f"ignite.handlers.PiecewiseLinear(optimizer, 'lr', [({start} * len(loader), {rate})])"


def _rate_function(modifier: Modifier) -> Answer:
    given = modifier.fields
    first, last = given.get("init_lr"), given.get("final_lr")
    start, end = given.get("start_epoch", 0), given.get("end_epoch")
    span = f"{end} * len(loader)"
    cycle = f"cycle_size=2 * ({end} - {start}) * len(loader)"
    kinds = {
        "linear": f"PiecewiseLinear(optimizer, 'lr', [({start} * len(loader), {first}), ({span}, {last})])",
        "cosine": f"CosineAnnealingScheduler(optimizer, 'lr', {first}, {last}, {cycle})",
        "cyclic_linear": f"LinearCyclicalScheduler(optimizer, 'lr', {first}, {last}, cycle_size=...)",
    }
    return (
        "handed on",
        f"ignite.handlers.{kinds.get(given.get('lr_func', 'linear'), 'PiecewiseLinear(optimizer, ...)')}",
    )


def _rate(modifier: Modifier) -> Answer:
    name, values = modifier.fields.get("lr_class", "ExponentialLR"), modifier.fields.get("lr_kwargs", {})
    return "handed on", f"ignite.handlers.LRScheduler(torch.optim.lr_scheduler.{name}(optimizer, **{values}))"


_QUANTIZATION = _fixed("handed on", "quantization: torchao or torch.ao on the pruned model, see docs/quantization.md")


def _distillation(modifier: Modifier) -> Answer:
    given = modifier.fields
    hardness, temperature = given.get("hardness", 0.5), given.get("temperature", 2.0)
    losses = f"SoftTargets(temperature={temperature})"
    return "handed on", f"handlers.Distillation(teacher, model, losses={losses}, hardness={hardness}) around the loss"


_LAYERS = _fixed("handed on", "handlers.Distillation(teacher, model, losses=[HiddenMSE(...), ...]) around the loss")

HANDED_ON: dict[str, Callable[[Modifier], Answer]] = {
    "EpochRangeModifier": _epochs,
    "SetLearningRateModifier": _set_rate,
    "LearningRateFunctionModifier": _rate_function,
    "LearningRateModifier": _rate,
    "CyclicLRModifier": _fixed("handed on", "ignite.handlers.LinearCyclicalScheduler(optimizer, 'lr', ...)"),
    "SuperModifier": _fixed("not possible", "it has no counterpart"),
    "SetWeightDecayModifier": _fixed("handed on", "set weight_decay in the optimizer's param_groups"),
    "SetParamModifier": _fixed("handed on", "set the parameter before the run"),
    "GradualParamModifier": _fixed("handed on", "an event handler of the trainer that sets the parameter"),
    "TrainableParamsModifier": _fixed("handed on", "parameter.requires_grad_() on an event of the trainer"),
    "QuantizationModifier": _QUANTIZATION,
    "LegacyQuantizationModifier": _QUANTIZATION,
    "GPTQModifier": _QUANTIZATION,
    "SmoothQuantModifier": _QUANTIZATION,
    "AWQModifier": _QUANTIZATION,
    "LogarithmicEqualizationModifier": _QUANTIZATION,
    "DistillationModifier": _distillation,
    "PerLayerDistillationModifier": _LAYERS,
    "OutputDistillationModifier": _distillation,
    "LayerPruningModifier": _fixed(
        "not possible", "whole layers are removed by structure.blocks(model), not by a mask"
    ),
    "LayerThinningModifier": _fixed("handed on", "ShrinkHandler, or shrink(model, ...) after the run"),
    "ASModifier": _fixed("not possible", "activation sparsity is handlers: ActivationSparsity, by layers"),
    "PowerpropagationModifier": _fixed("not possible", "a reparametrisation of weights has no counterpart"),
    "NmPruningModifier": _fixed("not possible", "write GMPruningModifier with mask_type N:M"),
}
