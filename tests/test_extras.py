"""What needs an optional package that is not installed says which extra installs it."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ignite_prune import Calibration, PruneHandler, export, measure, prune_model, schedule
from ignite_prune._utils.extras import EXTRAS

ROOT = Path(__file__).parent.parent


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def load_recipe(_):
    from ignite_prune import recipe

    recipe.load("sparsity: 0.5")


def write_report(path):
    from ignite_prune import report

    report(net(), path / "report.html")


def load_compressed(_):
    pruner = PruneHandler(net(), compress_masks=True)
    pruner.step(0.5)
    state = pruner.state_dict()
    sys.modules["numpy"] = None
    PruneHandler(net()).load_state_dict(state)


CALLS = {
    "jinja2": [write_report],
    "matplotlib": [lambda _: schedule.OneShot(0.5, at=1).plot()],
    "networkx": [lambda _: export_graph()],
    "numpy": [lambda _: PruneHandler(net(), compress_masks=True)],
    "onnx": [lambda path: export.to_onnx(net(), torch.ones(1, 4), path / "x.onnx")],
    "onnxruntime": [lambda path: export.to_onnx(net(), torch.ones(1, 4), path / "x.onnx")],
    "onnxscript": [lambda path: export.to_onnx(net(), torch.ones(1, 4), path / "x.onnx")],
    "safetensors": [lambda path: export.save(net(), path / "x.safetensors")],
    "tqdm": [
        lambda _: Calibration([torch.ones(1, 4)], progress=True),
        lambda _: measure.sensitivity(net(), lambda model: 1.0, sparsities=[0.5], progress=True),
    ],
    "yaml": [load_recipe],
}


def export_graph():
    from ignite_prune import to_networkx

    model = net()
    return to_networkx(model, prune_model(model, sparsity=0.5))


@pytest.mark.parametrize("package", CALLS)
def test_the_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    for call in CALLS[package]:
        with pytest.raises(ImportError, match=rf"needs {package}, .*'ignite-prune\[{EXTRAS[package]}\]'"):
            call(tmp_path)


def test_a_state_with_compressed_masks_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", sys.modules["numpy"] if "numpy" in sys.modules else __import__("numpy"))
    with pytest.raises(ImportError, match=r"needs numpy, .*'ignite-prune\[export\]'"):
        load_compressed(None)


def test_the_command_line_names_its_extra(monkeypatch):
    from ignite_prune.cli.entry_point import main

    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"needs typer, .*'ignite-prune\[cli\]'"):
        main()


def test_a_lazy_name_names_its_extra(monkeypatch):
    from ignite_prune import recipe

    for name in [name for name in sys.modules if name.startswith("ignite_prune.recipe.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ImportError, match=r"recipe.load needs pydantic, .*'ignite-prune\[recipe\]'"):
        recipe.load


def test_every_extra_is_on_the_page_of_dependencies():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(extras)
    assert set(EXTRAS.values()) <= set(extras)
