"""The house: imports only point down, and importing the package needs torch and Ignite alone."""

import ast
import subprocess
import sys
from pathlib import Path

import ignite_prune

ROOT = Path(ignite_prune.__file__).parent
# From the ground up; a module imports only from floors below, or from its own room.
FLOORS = [
    ["lazy", "arguments"],
    ["saliency", "pattern", "allocation", "schedule", "bits"],  # rooms of the ground never import each other
    ["select", "topk"],
    ["masks", "optimizer_state", "evidence"],
    ["dense", "enforce", "graph", "repair", "rewind", "structure"],
    ["connectivity", "groups"],
    ["controls"],
    ["scorer", "regularise"],
    ["divide"],
    ["coupled"],
    ["plan"],
    ["prune", "scoring", "functional", "activation", "regrow"],
    ["updater"],
    ["handlers"],
    ["loggers"],
    ["__init__"],
]
THIRD_FLOOR = ["handlers", "loggers", "__init__"]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "ignite_prune":
                yield from (f"ignite_prune.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_every_file_has_its_floor():
    assert {room for room, _ in modules()} == set(LEVEL)


def test_imports_only_point_down():
    for room, path in modules():
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "ignite_prune" and rest:
                target = rest.split(".")[0]
                assert target == room or LEVEL[target] < LEVEL[room], f"{path.name} imports {name}"


def test_only_the_third_floor_knows_ignite_and_the_ground_knows_torch_alone():
    heavy = {"matplotlib", "networkx", "numpy", "tensorboard", "rich", "tqdm", "sklearn", "pydantic", "typer"}
    for room, path in modules():
        tops = {name.split(".")[0] for name in imports(path)}
        assert "ignite" not in tops or room in THIRD_FLOOR, path
        # Schedule.plot, PruningEngine.plot and to_networkx import theirs when they are called
        assert not tops & heavy or path.name in ("base.py", "rounds.py", "graph.py"), path


def test_import_needs_torch_and_ignite_alone():
    code = """
import sys
import torch, ignite.engine, ignite.handlers, ignite.distributed
for extra in ("matplotlib", "networkx", "tensorboard", "rich", "sklearn", "tqdm", "scipy", "pandas"):
    sys.modules[extra] = None
before = set(sys.modules)
import ignite_prune
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new <= {"ignite_prune"} | sys.stdlib_module_names, new
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_documented_and_exported():
    assert set(ignite_prune.__all__) == {
        "LotteryTicket", "MaskStore", "PruneEvents", "PruneHandler", "Rewind", "ShrinkHandler", "activation",
        "allocation", "barrier", "create_pruning_engine", "functional", "load_shrunk", "pattern", "prune_model",
        "repair", "saliency", "schedule", "score", "shrink", "structure", "to_networkx", "trace",
    }  # fmt: skip
    for module in (
        ignite_prune,
        ignite_prune.activation,
        ignite_prune.allocation,
        ignite_prune.pattern,
        ignite_prune.repair,
        ignite_prune.saliency,
        ignite_prune.schedule,
        ignite_prune.structure,
    ):
        for name in module.__all__:
            assert (getattr(module, name).__doc__ or "").strip(), name
