"""The architecture, as five rules; docs/architecture.md explains them.

1. Formulas and helpers know torch alone.
2. Only handlers and loggers know Ignite; what people see stands above them.
3. No file imports itself by way of others; imports inside functions and for types count.
4. No module stands at the package's root but ``__init__``, ``__main__`` and ``functional``.
5. A class stands in a file that its name suggests.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import ignite_prune

ROOT = Path(ignite_prune.__file__).parent
FILES = {".".join(("ignite_prune", *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
FORMULAS = {"saliency", "pattern", "allocation", "schedule"}
KNOW_IGNITE = {"handlers", "loggers", "recipe", "report", "cli"}
ERRORS = {"Exception", "RuntimeError", "UserWarning", "ValueError"}
OPTIONAL = {
    "matplotlib",
    "networkx",
    "numpy",
    "onnx",
    "onnxruntime",
    "safetensors",
    "tensorboard",
    "tqdm",
}  # imported by the function that needs them


@cache
def tree(name):
    return ast.parse(FILES[name].read_text())


def room(name):
    found = name.split(".")[1] if "." in name else "__init__"
    return "cli" if found == "__main__" else found  # python -m ignite_prune


@cache
def imports(name):
    """All modules that a file imports, wherever in it; of this package the file that a name is taken from."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in FILES else node.module for each in full}
    return frozenset(found)


def own(name):
    """The files of this package that a file imports. A package hands names on and counts as a file when it is named."""
    return {each for each in imports(name) if each in FILES} - {name}


def test_formulas_and_helpers_know_torch_alone():
    for name in FILES:
        if room(name) in FORMULAS | {"_utils"}:
            tops = {each.split(".")[0] for each in imports(name)} - sys.stdlib_module_names - OPTIONAL
            assert tops <= {"torch", "ignite_prune"}, name
            assert {room(each) for each in own(name)} <= {room(name), "_utils"}, name


def test_only_handlers_and_loggers_know_ignite():
    for name in FILES:
        knows = any(each.split(".")[0] == "ignite" for each in imports(name))
        assert not knows or room(name) in KNOW_IGNITE, name
        above = {"handlers", "loggers"} & {room(each) for each in own(name)}
        assert not above or room(name) in KNOW_IGNITE | {"__init__"}, name


def test_no_file_imports_itself_by_way_of_others():
    TopologicalSorter({name: own(name) for name in FILES}).prepare()  # raises CycleError, which names the loop


def test_rooms_are_few_and_import_downwards():
    rooms = {each: set() for each in map(room, FILES)}
    for name in FILES:
        rooms[room(name)] |= {room(each) for each in own(name)} - {room(name)}
    assert len(rooms) <= 22
    floor = {}
    for each in TopologicalSorter(rooms).static_order():
        floor[each] = 1 + max((floor[below] for below in rooms[each]), default=0)
    assert max(floor.values()) <= 10, floor


def test_no_module_stands_at_the_root():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "functional.py"}


def flat(text):
    return text.replace("_", "").lower()


def suggests(stem, name):
    """Whether one of the two names is part of the other: ``n_of_m.py`` and NofM, ``events.py`` and PruneEvents."""
    return flat(stem).rstrip("s") in flat(name) or flat(name).rstrip("s") in flat(stem)


def is_record(node):
    """A record of what the file's main class or functions take and give, or an error that they raise."""
    bases = {ast.unparse(base).split("[")[0] for base in node.bases}
    return bool(
        bases
        & {"NamedTuple", "Protocol", "Enum", "TypedDict", "ValueError", "RuntimeError", "UserWarning", "Exception"}
        or (not bases and any("dataclass" in ast.unparse(each) for each in node.decorator_list))
    )


def test_a_class_stands_in_a_file_that_its_name_suggests():
    """By its own name or by that of the class that it is a kind of; records stand beside what they are records of."""
    lost = []
    for name, path in FILES.items():
        if path.name == "base.py":  # the interface that all of a room share
            continue
        for node in tree(name).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not is_record(node):
                called = [node.name, *(ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases)]
                if not any(suggests(path.stem, each) for each in called):
                    lost.append(f"{node.name} in {path.relative_to(ROOT)}")
    assert not lost, lost


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


def test_public_names_are_documented():
    packages = [name for name, path in FILES.items() if path.name == "__init__.py" and name.count(".") <= 1]
    for package in (sys.modules[name] for name in packages if name in sys.modules):
        for name in vars(package).get("__all__", ()):
            assert (getattr(package, name).__doc__ or "").strip(), name
