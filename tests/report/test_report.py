"""The report page: from a pruner, a model, files and folders; self-contained, escaped, whole or not there."""

import os
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn

import ignite_prune
from ignite_prune import PruneHandler, export, pattern, prune_model, schedule
from ignite_prune.handlers import SET
from ignite_prune.report import report
from tests.models import batches, small_net

pytest.importorskip("jinja2")
CROSS = nn.functional.cross_entropy


def trained(folder=None, epochs=3, **options):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, CROSS)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Polynomial(0.9, 0, 2), **options)
    pruner.attach(trainer)
    trainer.state.history = []
    trainer.state_dict_user_keys.append("history")
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: engine.state.history.append({"loss": engine.state.output, "sparsity": engine.state.sparsity}),
    )
    if folder is not None:
        objects = {"model": model, "pruner": pruner, "trainer": trainer}
        saver = Checkpoint(objects, DiskSaver(str(folder), require_empty=False), n_saved=2)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    trainer.run(batches(2), max_epochs=epochs)
    return model, pruner


class Page(HTMLParser):
    """Checks that tags are closed, and that nothing is loaded from elsewhere."""

    EMPTY = ("meta", "img", "br", "line", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.titles, self.images, self.text = [], [], 0, ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object"), tag
        assert values.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        self.images += tag == "img"
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_a_pruner(tmp_path):
    model, pruner = trained()
    path = ignite_prune.report(pruner, tmp_path / "report.html", warnings=[UserWarning("take <care>")])
    page = Page(path.read_text())
    assert page.titles == [
        "What was asked",
        "Curves",
        "Layers",
        "Thin layers",
        "Size on disk",
        "Masks",
        "Warnings",
        "Versions",
    ]
    total = sum(each.numel() for each in model.parameters())
    kept = total - round(0.9 * 2400)
    assert page.images == 3 and f"{kept:,}" in page.text and f"of {total:,} parameters kept" in page.text
    for part in ("Polynomial(final=0.9", "planned sparsity", "loss", "UserWarning: take <care>", torch.__version__):
        assert part in page.text, part
    assert "url(" not in path.read_text() and "http" not in path.read_text()
    pruner.finalize()
    report(pruner, path)  # an earlier report is replaced
    assert Page(path.read_text()).images == 3


def test_a_checkpoint_a_state_dict_and_a_compressed_file_say_the_same(tmp_path):
    model, pruner = trained(tmp_path)
    (file,) = tmp_path.glob("*_6.pt")
    sources = {"checkpoint": file, "folder": tmp_path, "model": model}
    torch.save(model.state_dict(), tmp_path / "model.pth")
    sources["weights"] = tmp_path / "model.pth"
    torch.save(pruner.state_dict(), tmp_path / "pruner.pt")
    sources["pruner"] = tmp_path / "pruner.pt"
    safetensors = pytest.importorskip("safetensors.torch")
    sources["compressed"] = export.save(model, tmp_path / "small.safetensors", pruner.masks)
    safetensors.save_file(model.state_dict(), tmp_path / "plain.safetensors")
    sources["plain"] = tmp_path / "plain.safetensors"
    for name, source in sources.items():
        text = report(source, tmp_path / f"{name}.md").read_text()
        for layer in ("0", "5", "7"):
            mask = pruner.masks[f"{layer}.weight"]
            kept = int(mask.sum()) + (len(mask) if name == "model" else 0)  # with the bias
            assert re.search(rf"^\| {layer}(\.weight)? .* {kept:,} \|", text, re.MULTILINE), (name, layer)
        assert ("| loss |" in text) == (name in ("checkpoint", "folder")), name
        assert ("| compressed |" in text) == (name != "pruner"), name


def test_curves_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    torch.save(small_net().state_dict(), tmp_path / "model.pt")
    for run in ("dense", "sparse"):
        with SummaryWriter(str(tmp_path / run)) as writer:
            for step in range(5):
                writer.add_scalar("epoch/accuracy", step / 5, step)
                writer.add_scalar("sparsity/global", step / 10, step)
    text = report(tmp_path, tmp_path / "report.md").read_text()
    assert "| epoch/accuracy | dense | 0 | 0.8 | ▁▃▅▆█ |" in text
    assert "| epoch/accuracy | sparse |" in text and "| sparsity | global | 0 | 0.4 |" in text


def test_speed_and_flops(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 8)
    prune_model(model, sparsity=0.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    before = [each.clone() for each in other.parameters()]
    path = report(tmp_path / "model.pt", tmp_path / "report.html", model=other, example_inputs=x)
    page = Page(path.read_text())
    assert "Speed" in page.titles and "float32" in page.text and "fastest engine" in page.text and "160" in page.text
    assert "not run: This needs onnx, which is not installed: pip install 'ignite-prune[onnx]'" in page.text
    assert all(torch.equal(*pair) for pair in zip(before, other.parameters()))


def test_other_sources(tmp_path):
    model = small_net()
    report(SET(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5), tmp_path / "set.md")
    report(small_net(), tmp_path / "dense.html")
    report(nn.ReLU(), tmp_path / "empty.html")
    history = {"loss": [3, 2, float("nan")], "accuracy": [0.1, 0.2]}
    assert "| loss | run | 3 | 2 |" in report(model, tmp_path / "curves.md", history=history).read_text()
    blocks = nn.Sequential(nn.Linear(16, 16))
    prune_model(blocks, sparsity=0.5, pattern=pattern.Channel())
    assert "8 of 16 outputs have no weight" in report(blocks, tmp_path / "rows.md").read_text()


def test_names_are_escaped(tmp_path):
    state = {"<script>alert(1)</script>|x": torch.ones(4, 4).triu()}
    torch.save(state, tmp_path / "model.pt")
    Page(report(tmp_path / "model.pt", tmp_path / "report.html", title="<script>").read_text())
    assert "alert(1)</script>\\|x |" in report(tmp_path / "model.pt", tmp_path / "report.md").read_text()


def test_bad_arguments(tmp_path):
    model, pruner = trained(tmp_path)
    (file,) = tmp_path.glob("*_6.pt")
    cut, foreign, empty, other = (tmp_path / name for name in ("cut.pt", "foreign.pt", "empty", "other.html"))
    later = tmp_path / "later.pt"
    torch.save({**pruner.state_dict(), "version": 99}, later)
    cut.write_bytes(file.read_bytes()[:-300])
    torch.save({"lr": 0.1, "f": re.compile}, foreign)
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    (tmp_path / "text.safetensors").write_text("not a file of tensors")
    empty.mkdir()
    (empty / "weights.pt").write_bytes(b"")
    other.write_text("my page")
    (tmp_path / "folder.html").mkdir()
    before = sorted(os.listdir(tmp_path))
    for error, message, source, options in (
        (ValueError, "weights_only=True", cut, {}),
        (ValueError, "weights_only=True", foreign, {}),
        (ValueError, "neither the masks of a pruner nor weights", tmp_path / "nothing.pth", {}),
        (ValueError, "safetensors", tmp_path / "text.safetensors", {}),
        (ValueError, "holds no checkpoint", empty, {}),
        (FileNotFoundError, "no file", tmp_path / "none.pt", {}),
        (TypeError, "Argument source", 3, {}),
        (ValueError, "meta device", nn.Linear(2, 2, device="meta"), {}),
        (ValueError, "not initialised", nn.LazyLinear(2), {}),
        (ValueError, "reads versions up to", later, {}),
        (TypeError, "Argument path", model, {"path": 3}),
        (ValueError, ".html or .md", model, {"path": tmp_path / "report.pdf"}),
        (FileNotFoundError, "no folder", model, {"path": tmp_path / "none" / "report.html"}),
        (FileExistsError, "is no report", model, {"path": other}),
        (FileExistsError, "is no report", model, {"path": tmp_path / "folder.html"}),
        (ValueError, "another one", file, {"model": nn.Linear(2, 2)}),
        (TypeError, "Argument model", file, {"model": "net"}),
        (ValueError, "needs the model", file, {"example_inputs": torch.ones(1)}),
        (ValueError, "expected|size|dim", pruner, {"example_inputs": torch.ones(1)}),
        (TypeError, "Argument history", model, {"history": 3}),
    ):
        with pytest.raises(error, match=message):
            report(source, **{"path": tmp_path / "report.html", **options})
    assert sorted(os.listdir(tmp_path)) == before and other.read_text() == "my page"
    Page(report(model, other, overwrite=True).read_text())


def test_a_damaged_state_of_a_pruner_is_named(tmp_path):
    _, pruner = trained()
    state = pruner.state_dict()
    state["masks"]["bits"] = state["masks"]["bits"][:-1]
    torch.save(state, tmp_path / "pruner.pt")
    with pytest.raises(ValueError, match="mask bits should be"):
        report(tmp_path / "pruner.pt", tmp_path / "report.html")


def test_without_jinja(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'ignite-prune\[report\]'"):
        report(small_net(), tmp_path / "report.html")
