"""Constructors of every optimizer that is installed: of torch and of packages of optimizers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Make = Callable[[nn.Module], Optimizer]
LISTS = {  # packages that list the names of their optimizers
    "pytorch_optimizer": ("get_supported_optimizers", "load_optimizer"),
    "timm.optim": ("list_optimizers", "get_optimizer_class"),
}
MODULES = ("torch.optim", "torch_optimizer", "heavyball", "schedulefree", "torchao.optim", "bitsandbytes.optim")
MODULES += ("lion_pytorch", "prodigyopt", "galore_torch", "dadaptation", "adam_mini")


def optimizers() -> Iterator[tuple[str, Make]]:
    """Yield a name and a constructor for each optimizer; each class once."""
    seen = set()
    for package in (*MODULES, *LISTS):
        try:
            module = importlib.import_module(package)
        except Exception:
            continue
        for name, kind in _kinds(module, package):
            if kind not in seen and not inspect.isabstract(kind):
                seen.add(kind)
                yield f"{package.removesuffix('.optim')} {name}", _made_by(kind)


def _kinds(module: Any, package: str) -> Iterator[tuple[str, Any]]:
    if package in LISTS:
        names, load = (getattr(module, each) for each in LISTS[package])
        for name in names():
            try:
                yield name, load(name)
            except Exception:  # of a library that is not installed, or for a GPU
                continue
    else:
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer:
                yield name, kind


def _made_by(kind: Any) -> Make:
    """Return a constructor that tries the forms of arguments that optimizers have, the plainest first."""

    def make(model: nn.Module) -> Optimizer:
        params, matrices = list(model.parameters()), {"params": list(model.parameters()), "use_muon": True}
        base = torch.optim.SGD(params, lr=1e-3)
        forms: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((params,), {"lr": 1e-3}),
            ((params,), {}),
            (([matrices],), {"lr": 1e-3}),
            (([matrices],), {}),
            ((model,), {"lr": 1e-3}),
            ((model.named_parameters(),), {"lr": 1e-3}),
            ((params,), {"lr": 1e-3, "num_data": 256}),
            ((params,), {"lr": 1e-3, "r": 4, "lora_params": None}),
            ((params,), {"lr": 1e-3, "num_iterations": 60}),
            ((params,), {"lr": 1e-3, "momentum": 0.9}),
            ((base,), {}),
            ((params, torch.optim.SGD), {"lr": 1e-3}),
        ]
        if "line_search_fn" in inspect.signature(kind).parameters:
            forms.insert(0, ((params,), {"lr": 1e-3, "line_search_fn": "strong_wolfe"}))
        errors = []
        for args, kwargs in forms:
            try:
                optimizer = kind(*args, **kwargs)
            except Exception as error:
                errors.append(error)
                continue
            return optimizer
        raise errors[0]

    return make
