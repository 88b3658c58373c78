"""Configs of transformers that cannot describe a sliced model: it is saved, but not loaded, by its own library."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn


def configs_of(model: nn.Module) -> list[Any]:
    """Return the configs of transformers that the modules of a model hold, each once."""
    held = (vars(module).get("config") for module in model.modules())
    return list({id(each): each for each in held if _is_config(each)}.values())


def _is_config(value: Any) -> bool:
    return any(kind.__name__ == "PreTrainedConfig" for kind in type(value).__mro__)


def refusal_of(config: Any) -> str:
    """Return the error with which a config's class refuses its own values, as text; empty if it takes them."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:
        return str(error).strip().splitlines()[-1].strip() if str(error) else type(error).__name__
    return ""


def warn_of_configs(configs: list[Any]) -> None:
    """Warn of configs that their class would refuse; ``from_pretrained`` then cannot load the model."""
    for config in configs:
        if why := refusal_of(config):
            name = type(config).__name__
            warnings.warn(
                f"The sliced model runs, but {name} refuses its sizes ({why}), so that from_pretrained cannot load it: "
                "save structure.shrunk_state(model, report.indices), and load it with load_shrunk",
                stacklevel=5,
            )
