import json
import os
import shutil
import signal
from functools import partial

import pytest
import torch

from ignite_prune import allocation, prune_blocks, prune_checkpoint, repair, saliency
from ignite_prune.core.mask_store import MaskStore
from tests.blocks.nets import GPT, Llama, made, tokens

safetensors = pytest.importorskip("safetensors.torch")
SETTINGS = {"data": tokens(), "sparsity": 0.5, "saliency": saliency.SparseGPT(), "repair": repair.SparseGPT()}
FILE = "model-{:05}-of-00003.safetensors"


def sharded(model, folder):
    """Write a model as three files with an index, its blocks cut across them, as other libraries do."""
    folder.mkdir()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = sorted(state)
    places = {name: FILE.format(1 + index * 3 // len(names)) for index, name in enumerate(names)}
    for file in set(places.values()):
        safetensors.save_file({n: state[n] for n in names if places[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_text("other weights")
    return folder


def loaded(folder):
    return {n: v for file in sorted(folder.glob("*.safetensors")) for n, v in safetensors.load_file(file).items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("net", "blocks"), [(GPT, "h.*"), (Llama, "layers.*")])
def test_equal_to_pruning_in_memory(net, blocks, dtype, tmp_path):
    model = made(net).to(dtype)
    model.frequencies = made(net).float().frequencies if net is Llama else None
    source = sharded(model, tmp_path / "dense")
    dense = contents(source)
    report = prune_checkpoint(source, tmp_path / "sparse", build=net, blocks=blocks, **SETTINGS)
    masks = prune_blocks(model, blocks, **SETTINGS)
    found = loaded(tmp_path / "sparse")
    assert found.keys() == model.state_dict().keys() and report.sparsity == masks.sparsity == 0.5
    assert all(
        torch.equal(value, found[name]) and found[name].dtype == dtype for name, value in model.state_dict().items()
    )
    assert contents(source) == dense and set(contents(tmp_path / "sparse")) == set(dense) - {"model.bin"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "sparse"]


def test_one_file_names_and_masks(tmp_path):
    model = made(GPT).float()
    safetensors.save_file(
        {f"net.{n}": v.clone() for n, v in model.state_dict().items()}, tmp_path / "dense.safetensors"
    )
    prune_checkpoint(
        tmp_path / "dense.safetensors",
        tmp_path / "sparse.safetensors",
        build=GPT,
        blocks=["h.0", "h.1"],
        rename="net.{}".format,
        dtype=torch.float64,
        **SETTINGS | {"allocation": allocation.OWL()},
    )
    state = safetensors.load_file(tmp_path / "sparse.safetensors")
    model.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    masks = MaskStore.from_nonzero(model)
    assert 0.4 < 1 - masks.kept("h.0.fc.weight") / masks.whole("h.0.fc.weight") < 0.5 and masks["h.2.fc.weight"].all()


class Killer(GPT):
    """Acts when one of its blocks has run the given number of times."""

    def __init__(self, block, calls, act):
        super().__init__()
        self.h[block].fc.register_forward_pre_hook(self.count)
        self.left, self.act = calls, act

    def count(self, module, args):
        self.left -= 1
        if self.left < 0:
            self.act()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("block", "calls"), [(0, 5), (1, 2), (2, 3)])
def test_goes_on_after_a_kill(block, calls, tmp_path):
    """Killed while gathering and while running again, in the first, second and last block."""
    settings = SETTINGS | {"saliency": saliency.Random(), "repair": repair.SparseGPT(), "blocks": "h.*"}
    source = sharded(made(GPT).float(), tmp_path / "dense")
    prune = partial(prune_checkpoint, source, **settings)
    prune(tmp_path / "whole", build=GPT, generator=torch.Generator().manual_seed(1))
    child = os.fork()
    if not child:
        try:
            build = partial(Killer, block, calls, kill)
            prune(tmp_path / "sparse", build=build, generator=torch.Generator().manual_seed(1))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    work = tmp_path / ".sparse.partial"
    assert not (tmp_path / "sparse").exists() and work.is_dir()
    done = json.loads((work / "journal.json").read_text())["done"]
    assert [each["name"] for each in done] == [f"h.{i}" for i in range(block)]
    if done:
        with pytest.raises(ValueError, match=r"sparsity .*0.5.*0.6.*delete the folder"):
            prune(tmp_path / "sparse", build=GPT, **{"sparsity": 0.6})
        with pytest.raises(ValueError, match=r"data"):
            prune(tmp_path / "sparse", build=GPT, **{"data": tokens(seed=2)})
    report = prune(tmp_path / "sparse", build=GPT, generator=torch.Generator().manual_seed(1))
    assert contents(tmp_path / "sparse") == contents(tmp_path / "whole") and not work.exists()
    assert len(report.blocks) == 3 and report.sparsity == 0.5


def test_a_full_disk(tmp_path, monkeypatch):
    source = sharded(made(GPT).float(), tmp_path / "dense")
    prune = partial(prune_checkpoint, source, tmp_path / "sparse", blocks="h.*", **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(OSError, match=r"needs [\d,]+ bytes, but 10 are free; nothing was written"):
            prune(build=GPT)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="nothing is at '.*sparse', and 1 blocks are done; the same call goes on"):
        prune(build=partial(Killer, 1, 2, full))
    assert not (tmp_path / "sparse").exists()
    prune(build=GPT)
    assert loaded(tmp_path / "sparse")


def damaged(folder, how):
    file = folder / FILE.format(1)
    if how == "short":
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "header":
        file.write_bytes(file.read_bytes()[:8] + b"x" * 3000)
    elif how == "missing":
        file.unlink()
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("given", "how", "kind", "text"),
    [
        ({}, "short", ValueError, "cut short"),
        ({}, "header", ValueError, "safetensors file"),
        ({}, "missing", FileNotFoundError, "missing"),
        ({}, "index", ValueError, "not an index"),
        ({"build": partial(GPT, blocks=4)}, "", ValueError, r"no tensor 'h.3"),
        ({"build": Llama, "blocks": "layers.*"}, "", ValueError, "no tensor 'embed.weight'"),
        ({"build": dict}, "", TypeError, "build"),
        ({"blocks": "g.*"}, "", ValueError, r"'g.\*'"),
        ({"data": []}, "", ValueError, "no batch"),
        ({"out": "dense"}, "", FileExistsError, "there already"),
        ({"out": "no/where"}, "", FileNotFoundError, "no folder"),
        ({"out": "one.safetensors"}, "", ValueError, "should be a folder"),
        ({"source": "none"}, "", FileNotFoundError, "no file"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(given, how, kind, text, tmp_path):
    damaged(sharded(made(GPT).float(), tmp_path / "dense"), how)
    given = {"source": "dense", "out": "sparse", "build": GPT, "blocks": "h.*"} | given
    source, out = tmp_path / given.pop("source"), tmp_path / given.pop("out")
    with pytest.raises(kind, match=text):
        prune_checkpoint(source, out, **SETTINGS | given)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
