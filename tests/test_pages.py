"""Every page's code is run as it stands there, block after block in one space, as a reader would; links lead somewhere.

Some have tests of what they end with; ``quantization.md`` is run by tests/test_quantization.py.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture
def regimes():
    torch.manual_seed(0)
    space = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch.ao's, and that of its tensors
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        for block in blocks_of("regimes.md"):
            exec(compile(block, "regimes.md", "exec"), space)
    return space


def test_regimes_run_and_end_as_sparse_as_they_say(regimes):
    for name in ("gradual", "one_shot", "locked", "rigged", "even", "shared", "top", "alternating"):
        assert regimes[name].sparsity == pytest.approx(0.9, abs=0.01), name


PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.rglob("*.md")
    if path.relative_to(DOCS).parts[0] not in ("_build", "api", "tutorials")
)
ELSEWHERE = {
    "regimes.md",
    "quantization.md",
    "optimizers.md",
    "best_model.md",
    "lora.md",
    "selection.md",
    "delivery.md",
    "one_shot.md",
    "sensitivity.md",
    "howto/resume.md",
}
NEEDS = {"howto/onnx.md": "onnx", "howto/transformers.md": "transformers", "howto/logging.md": "tensorboard"}


@pytest.mark.parametrize("page", [each for each in PAGES if blocks_of(each) and each not in ELSEWHERE])
@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
@pytest.mark.filterwarnings("ignore:.*left out of mask updates until data reaches them")  # saliency.md shows it
def test_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS.get(page, "torch"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    space = {"__name__": "page"}
    with torch.random.fork_rng():
        for index, block in enumerate(blocks_of(page)):
            exec(compile(block, f"{page}, block {index + 1}", "exec"), space)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)", text):
        path = (DOCS / page).parent / target
        generated = {DOCS / "benchmarks.md", DOCS / "changelog.md"}
        assert path.exists() or path in generated, target


@pytest.mark.parametrize("page", ["architecture.md", "extending.md"])
def test_files_that_are_named_exist(page):
    root = DOCS.parent
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", (DOCS / page).read_text()))
    assert (
        named
        and [each for each in sorted(named) if not ((root / each).exists() or (root / "ignite_prune" / each).exists())]
        == []
    )


def test_the_page_on_optimizers_runs():
    space = {}
    for block in blocks_of("optimizers.md"):
        exec(compile(block, "optimizers.md", "exec"), space)
    space["optimizer"].step()
    assert not any(space["model"][0].weight[~space["pruner"].masks["0.weight"]].tolist())


def test_the_best_model_is_the_sparse_one():
    torch.manual_seed(0)
    space = {}
    for block in blocks_of("best_model.md"):
        exec(compile(block, "best_model.md", "exec"), space)
    zeros = sum(int((each == 0).sum()) for name, each in space["model"].named_parameters() if "weight" in name)
    assert zeros == 4262  # 0.9 of 4,736 weights, to the nearest


@pytest.mark.parametrize("page", ["lora.md", "selection.md"])
def test_short_pages_run(page, capsys):
    space = {}
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), space)
    shown = {
        "lora.md": "['0.base_layer.weight', '2.weight']\n",
        "selection.md": "['0.weight', '1.theta', '2.weight'] ['0.weight', '2.weight']\n",
    }
    assert capsys.readouterr().out == shown[page]


def test_the_page_on_one_shot_pruning_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks_of("one_shot.md"):
        exec(compile(block, "one_shot.md", "exec"), space)
    assert "layers.2" in capsys.readouterr().out and space["pruner"].sparsity == space["report"].sparsity == 0.5
    assert int((space["model"].layers[1].up.weight == 0).sum()) == 32 * 64 / 2


@pytest.mark.filterwarnings("ignore:.*torch.utils.data.sampler")
def test_the_page_on_resuming_ends_with_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {}
    with torch.random.fork_rng():
        for block in blocks_of("howto/resume.md"):
            exec(compile(block, "resume.md", "exec"), space)
    assert capsys.readouterr().out == "0.8\nTrue\n"


@pytest.mark.filterwarnings("ignore:Pruning left less")
def test_the_page_on_sensitivity_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks_of("sensitivity.md"):
        exec(compile(block, "sensitivity.md", "exec"), space)
    assert capsys.readouterr().out.endswith("\n0.8\n") and (tmp_path / "scan.json").exists()
    space["found"].scan.plot().figure.clf()


def test_the_page_on_delivery_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in blocks_of("delivery.md"):
        exec(compile(block, "delivery.md", "exec"), space)
    shown = capsys.readouterr().out
    assert "True\nLinear(in_features=512, out_features=256, bias=True)" in shown and "torch.Size([32, 10])" in shown
    assert space["path"].stat().st_size < 0.12 * 4 * (512 * 1024 + 1024 * 10 + 1034)
