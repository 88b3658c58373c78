"""Selection of parameters: names, globs and layer types to ``{name: Parameter}``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils import parametrize

from ignite_prune._utils.arguments import near
from ignite_prune._utils.shard import is_sharded
from ignite_prune.core.weight_kinds import (
    ADAPTER,
    EMBEDDINGS,
    OUTPUTS_FIRST,
    PRUNABLE,
    SELECTED,
    Kind,
    has_inputs_first,
    kind_of,
)

Rule = str | type[nn.Module]

COMPILED = "_orig_mod."
_UNSUPPORTED = {  # by the package's name, as none of them is imported here
    ("torch", "FullyShardedDataParallel"),
    ("fairscale", "FullyShardedDataParallel"),
    ("torch_xla", "XlaFullyShardedDataParallel"),
    ("deepspeed", "DeepSpeedEngine"),
    ("deepspeed", "InferenceEngine"),
}
_UNSUPPORTED_MODEL = (
    "whose ranks hold pieces of the weights, or other copies than the optimizer steps; prune the model before it is "
    "wrapped, or train with torch.distributed.fsdp.fully_shard (FSDP2), parallelize_module or "
    "torch.nn.parallel.DistributedDataParallel"
)
_DICTS = (nn.ModuleDict, nn.ParameterDict)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile`` wrappers.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Argument model should be a torch.nn.Module, but given {type(model)}")
    for kind in type(model).__mro__:
        if (kind.__module__.partition(".")[0], kind.__name__) in _UNSUPPORTED:
            raise ValueError(f"Argument model is a {kind.__name__}, {_UNSUPPORTED_MODEL}")
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif COMPILED[:-1] in model._modules:  # torch.compile's OptimizedModule
            model = model._modules[COMPILED[:-1]]  # type: ignore[assignment]
        else:
            return model


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the unwrapped model's parameters by name; a tied one once, under its first name."""
    return {name.replace(COMPILED, ""): parameter for name, parameter in unwrap(model).named_parameters()}


def inputs_first(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that store inputs in dim 0 and outputs in dim 1, for all layers that they are of.

    Example:
        >>> sorted(inputs_first(nn.Sequential(nn.ConvTranspose1d(2, 3, 1), nn.Conv1d(3, 2, 1))))
        ['0.weight']
    """
    turned, straight = set[int](), set[int]()
    for module in unwrap(model).modules():
        if (weight := module._parameters.get("weight")) is not None:
            is_turned = type(module) not in OUTPUTS_FIRST and has_inputs_first(module)
            (turned if is_turned else straight).add(id(weight))
    turned -= straight
    if not turned:
        return frozenset()
    return frozenset(name for name, each in named_parameters(model).items() if id(each) in turned)


def is_number(parameter: Tensor) -> bool:
    """Return whether a parameter holds floating-point (or complex) numbers, and is not lazy."""
    return not is_lazy(parameter) and (parameter.is_floating_point() or parameter.is_complex())


def select(
    model: nn.Module,
    params: Rule | Sequence[Rule] | None = None,
    exclude: Rule | Sequence[Rule] = (),
    *,
    report: bool = False,
    sharded: bool = False,
) -> dict[str, nn.Parameter]:
    """Return the parameters that the rules select, in the model's order.

    A rule is a parameter's name, a glob over names (``"features.*.weight"``), or a layer type (``nn.Conv2d``: the
    weights of those layers). Globs are literal: ``"features.*"`` takes biases and norms too. A tied parameter may be
    called by any of its names and is selected once.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        params: rules; None takes the weights of every linear, convolutional, recurrent and attention layer of torch,
            and parameters of other layers that are weights by the rules of :func:`.kind_of`: transformers' ``Conv1D``,
            stacked experts, a ``Dense`` of the user's own. No bias, norm, embedding, position or token; of a model with
            adapters (LoRA) the base weights alone; reparametrised layers (spectral norm, weight norm) are left out with
            a warning.
        exclude: rules for parameters to leave out.
        report: with ``params=None``, warn if the selection leaves much of the model dense.
        sharded: take DTensors too.

    Raises:
        TypeError: a rule is neither a string nor a layer type.
        ValueError: a rule matches nothing, everything is excluded, or a parameter cannot be pruned (reparametrised,
            lazy, sparse, not floating point).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> list(select(model)), list(select(model, "*.bias", exclude="1.*"))
        (['0.weight', '2.weight'], ['0.bias', '2.bias'])
    """
    model = unwrap(model)
    everything = named_parameters(model)
    flattened = next((name for name in everything if "_fsdp_wrapped_module." in name), None)
    if flattened is not None:
        raise ValueError(f"Parameter {flattened!r} is of a FullyShardedDataParallel, {_UNSUPPORTED_MODEL}")
    if not everything:
        raise ValueError(f"The model {type(model).__name__} has no parameters to prune")
    computed, parts = reparametrised(model)
    named = () if exclude == () else as_rules("exclude", exclude)
    dropped = {name for rule in named for name in _matches(model, rule, "exclude")}
    if params is None:
        kinds = kinds_of(model)
        chosen = {name for name, p in everything.items() if kinds[p] in SELECTED and name not in parts}
        left = {
            name: kinds[p]
            for name, p in everything.items()
            if report and name not in chosen and name not in dropped and name not in parts and _dims(p) > 1
        }
        if computed or left:
            from ignite_prune.core.dense_report import warn_of_dense  # rarely needed

            warn_of_dense(everything, left, computed)
    else:
        chosen = {name for rule in as_rules("params", params) for name in _matches(model, rule, "params")}
    selected = {name: p for name, p in everything.items() if name in chosen and name not in dropped}
    if not selected:
        why = "every one that params names is excluded" if chosen else "it has no layer that is pruned by default"
        raise ValueError(f"No parameter of {type(model).__name__} is left to prune: {why}; name them with params=")
    for name, parameter in selected.items():
        if name in parts:
            raise ValueError(_REFUSED.format(name))
        _check(name, parameter, sharded)
    return selected


def _dims(parameter: nn.Parameter) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.dim()


def as_rules(argument: str, rules: Any) -> list[Rule]:
    """Return rules as a list; one rule alone is a list of one."""
    listed = [rules] if isinstance(rules, (str, type)) else rules
    if not isinstance(listed, Sequence) or isinstance(listed, (bytes, Tensor)):
        raise TypeError(f"Argument {argument} should be a name, a glob or a sequence of them, but given {type(rules)}")
    for rule in listed:
        if not isinstance(rule, str) and not (isinstance(rule, type) and issubclass(rule, nn.Module)):
            raise TypeError(
                f"Argument {argument} should hold names, globs or layer types (nn.Conv2d), but given {type(rule)}: "
                f"{rule!r:.80}"
            )
    return list(listed)


def _matches(model: nn.Module, rule: Rule, argument: str) -> list[str]:
    canonical = {id(p): name for name, p in named_parameters(model).items()}
    aliases = {
        name.replace(COMPILED, ""): canonical[id(p)] for name, p in model.named_parameters(remove_duplicate=False)
    }
    if not isinstance(rule, str):
        found = [aliases[name] for name, _ in _weights(model, (rule,)) if name in aliases]
        if not found:
            raise ValueError(f"Argument {argument}: the model has no weights in layers of type {rule.__name__}")
        return found
    found = [aliases[name] for name in aliases if name == rule] or [
        aliases[name] for name in aliases if fnmatchcase(name, rule)
    ]
    if not found:
        for name in reparametrised(model)[0]:
            if fnmatchcase(name, rule):
                raise ValueError(f"Argument {argument}: {_REFUSED.format(name)}")
        raise ValueError(f"Argument {argument}: no parameter matches {rule!r}; {near(rule, list(aliases))}")
    return found


def _weights(model: nn.Module, types: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights (not biases) that layers of ``types`` own themselves, under every name they have."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, types):
            for name, parameter in module.named_parameters(recurse=False):
                if "weight" in name or kind_of(module, name, parameter) is Kind.WEIGHT:
                    yield f"{prefix}.{name}".lstrip(".").replace(COMPILED, ""), parameter


def kinds_of(model: nn.Module) -> dict[nn.Parameter, Kind]:
    """Return what each parameter of two dimensions or more is; a tied one is the least of what it is.

    Adapters are what names say (``lora_A``), and what wrappers of peft hold in dicts next to their ``base_layer``; of a
    module that is trained as a whole (``modules_to_save``) both copies are left dense.
    """
    kinds: dict[nn.Parameter, Kind] = {}
    adapters: set[nn.Module] = set()
    lists: dict[nn.Module, tuple[nn.Module, str]] = {}
    for module in model.modules():
        children, is_adapter = module._modules, module in adapters
        for name, child in children.items():
            if isinstance(child, (nn.ParameterList, nn.ParameterDict)):
                lists[child] = module, name
            if (
                is_adapter
                or ADAPTER.match(name)
                or ("base_layer" in children and isinstance(child, _DICTS))
                or ("modules_to_save" in children and "original_module" in children)
            ):
                adapters.add(child)  # type: ignore[arg-type]
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            if is_adapter or isinstance(module, EMBEDDINGS) or ADAPTER.match(leaf):
                kind = Kind.DENSE
            elif isinstance(module, PRUNABLE):
                kind = Kind.LAYER if "weight" in leaf else Kind.OTHER
            elif module in lists:
                owner, name = lists[module]
                kind = kind_of(owner, f"{name}_{leaf}", parameter)
            else:
                kind = kind_of(module, leaf, parameter)
            kinds[parameter] = min(kind, kinds.get(parameter, kind))
    return kinds


_REFUSED = (
    "the layer of {!r} is reparametrised (spectral norm, weight norm, torch.nn.utils.prune, ...), so its weight is "
    "computed in each forward and a mask on its parts would not be one on the weight; remove the "
    "reparametrisation first"
)


def reparametrised(model: nn.Module) -> tuple[set[str], set[str]]:
    """Return the names of the weights that a parametrisation of torch's new or old kind computes, and of its parts.

    Parts are the parameters that such a weight is computed from (``weight_g``, ``parametrizations.weight.original``).
    """
    weights, parts = set[str](), set[str]()
    for prefix, module in model.named_modules(remove_duplicate=False):
        path = f"{prefix}." if prefix else ""
        if parametrize.is_parametrized(module):
            weights |= {path + name for name in module.parametrizations}
            parts |= {f"{path}parametrizations.{name}" for name, _ in module.parametrizations.named_parameters()}
        for leaf in module._parameters:
            stem, _, suffix = leaf.rpartition("_")
            if suffix in ("g", "v", "orig") and stem in vars(module):  # weight_norm and prune of torch.nn.utils
                weights.add(path + stem)
                parts.add(path + leaf)
    return {name.replace(COMPILED, "") for name in weights}, {name.replace(COMPILED, "") for name in parts}


def _check(name: str, parameter: nn.Parameter, sharded: bool) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"Parameter {name!r} is lazy and has no shape yet; run one forward of the model first")
    if parameter.device.type == "xla":
        raise ValueError(f"Parameter {name!r} is on an XLA device, which is not supported; train on a CPU or a GPU")
    is_dtensor = type(parameter) is not nn.Parameter and is_sharded(parameter)
    if is_dtensor and not sharded:
        raise ValueError(
            f"Parameter {name!r} is a DTensor, of a model under fully_shard or parallelize_module, which PruneHandler "
            "prunes; for others prune the model before it is sharded"
        )
    if parameter.is_meta or parameter.is_sparse or not (is_dtensor or type(parameter.data) is Tensor):
        raise ValueError(
            f"Parameter {name!r} should be a plain dense tensor on a device, but it is {type(parameter.data).__name__} "
            f"on {parameter.device}"
        )
    if not parameter.dtype.is_floating_point and not parameter.dtype.is_complex:
        raise ValueError(f"Parameter {name!r} should be floating point, but it is {parameter.dtype}")
