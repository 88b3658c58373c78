"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ignite_prune.recipe.models import read_piece
from ignite_prune.recipe.source import parsed

RUNS = "Imports MODULE and runs its code."
Model = Annotated[str, typer.Argument(metavar="MODULE:CALLABLE", help=f"Returns a model, or (model, inputs). {RUNS}")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
State = Annotated[Path | None, typer.Option("--state", help="A checkpoint or state_dict to load into the model.")]
Example = Annotated[
    str | None, typer.Option("--example", metavar="MODULE:CALLABLE", help=f"Returns example inputs. {RUNS}")
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="MODULE:CALLABLE", help=f"Returns calibration batches. {RUNS}")
]
Loss = Annotated[str | None, typer.Option("--loss", help="A loss of torch.nn.functional, such as cross_entropy.")]
Params = Annotated[list[str] | None, typer.Option("--params", help="A name or glob of parameters; may be repeated.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="What to leave out; may be repeated.")]
Saliency = Annotated[str, typer.Option("--saliency", help="A name, or '{type: Taylor, squared: true}'.")]
Pattern = Annotated[str, typer.Option("--pattern", help="A name, or '{type: NofM, keep: 2, of: 4}'.")]
Allocation = Annotated[str, typer.Option("--allocation", help="A name, or '{type: ERK, power: 0.5}'.")]


def piece(kind: str, text: str) -> Any:
    """Return a piece from what an option says: a name, or YAML.

    Raises:
        ValueError: there is none of that name, or an argument is wrong.
    """
    value = parsed(text).data if text.lstrip().startswith("{") else text
    return read_piece(kind, value)


def loss_of(name: str | None) -> Any:
    """Return a loss of ``torch.nn.functional`` by name; None for None.

    Raises:
        ValueError: there is none.
    """
    import torch

    from ignite_prune._utils.arguments import near
    from ignite_prune.recipe.calibration_model import LOSSES

    if name is not None and name not in LOSSES:
        raise ValueError(f"--loss: torch.nn.functional has no loss {name!r}; {near(name, LOSSES)}")
    return None if name is None else getattr(torch.nn.functional, name)
