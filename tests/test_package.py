"""The package as people install, complete and check it: names, links, metadata."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import ignite_prune

ROOT = Path(__file__).parent.parent
ROOMS = [each.name for each in iter_modules(ignite_prune.__path__) if each.ispkg]
PACKAGES = ["ignite_prune", *(f"ignite_prune.{room}" for room in ROOMS)]
WITHOUT_NAMES = {f"ignite_prune.{room}" for room in ("core", "update")}  # rooms whose names the package hands on
ADDRESS = "https://git.example/someone/ignite-prune"


@pytest.mark.parametrize("package", PACKAGES)
def test_tab_shows_every_public_name_and_each_is_there(package):
    module = import_module(package)
    public = set(getattr(module, "__all__", ()))
    assert public <= set(dir(module))
    assert all(getattr(module, name) is not None for name in public)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_no_getattr(package):
    """Neither defined nor assigned where a checker looks; the names are imported for it instead."""
    tree = ast.parse(Path(import_module(package).__file__).read_text())
    hidden = [each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "not TYPE_CHECKING"]
    seen = [each for each in tree.body if each not in hidden]
    assert "__getattr__" not in "".join(map(ast.unparse, seen))
    lazy = set(getattr(import_module(package), "_FILES", ()))
    imported = {name.name for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) for name in each.names}
    assert lazy <= imported


def test_mypy_finds_a_misspelt_name(tmp_path):
    pytest.importorskip("mypy")
    config = "[mypy]\nfollow_imports = skip\n[mypy-ignite_prune.schedule.*]\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(config)
    (tmp_path / "user.py").write_text("import ignite_prune.schedule as s\ns.Linaer(0.5)\ns.Linear(0.5, 0, 4)\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), "--cache-dir=/dev/null"]
    done = subprocess.run([*command, str(tmp_path / "user.py")], capture_output=True, text=True, cwd=ROOT, check=False)
    assert re.findall(r"user.py:(\d+): error: (.*)  ", done.stdout) == [
        ("2", 'Module has no attribute "Linaer"; maybe "Linear"?')
    ]


def setup_file():
    pytest.importorskip("setuptools")
    space = {"__name__": "setup_file", "__file__": str(ROOT / "setup.py")}
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), space)
    return space


def test_links_of_the_readme_lead_into_the_repository():
    shown = setup_file()["with_absolute_links"]((ROOT / "README.md").read_text(), ADDRESS)
    targets = re.findall(r"\]\(([^)\s]+)\)", shown)
    assert len(targets) > 40 and all(each.startswith(("https://", "#")) for each in targets)
    ours = [each.removeprefix(ADDRESS) for each in targets if each.startswith(ADDRESS)]
    for each in ours:
        kind, _, path = each.lstrip("/").split("/", 2)
        assert (ROOT / path.split("#")[0]).exists(), each
        assert (kind == "raw") == path.endswith(".png")


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://git.example/someone/ignite-prune.git\n", ADDRESS),
        ("https://user:token@git.example/someone/ignite-prune", ADDRESS),
        ("git@git.example:someone/ignite-prune.git", ADDRESS),
        ("ssh://git@git.example:22/someone/ignite-prune.git", ADDRESS),
        ("/srv/ignite-prune", ""),
        ("", ""),
    ],
)
def test_the_repository_is_the_remote_without_credentials(remote, address):
    assert setup_file()["web_address"](remote) == address


def test_versions_agree():
    version = f"{ignite_prune.__version__}"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    ruff = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"rev: v{ruff}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_forms_and_metadata_are_well_formed():
    yaml = pytest.importorskip("yaml")
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"]:
        assert yaml.safe_load(path.read_text()), path
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"readme", "urls", "version"} <= set(project["dynamic"])
    assert len(project["keywords"]) >= 8 and len(project["classifiers"]) >= 10


def test_the_api_of_the_site_has_every_public_name(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    pages = import_module("generated_pages")
    listed = pages.packages()
    assert {f"ignite_prune.{room}" for room in ROOMS if not room.startswith("_")} - set(listed) <= WITHOUT_NAMES
    for package in listed:
        written = set(re.findall(r"^   (\w+)$|`(\w+) <", pages.page(package), re.MULTILINE))
        module = import_module(package)
        public = {name for name in module.__all__ if not name.startswith("_")} - set(ROOMS) - {"functional"}
        assert public <= {one or other for one, other in written}, package
