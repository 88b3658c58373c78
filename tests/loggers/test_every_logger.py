"""Each of Ignite's loggers: the real library in its offline mode where it is installed, and a fake with its signatures.

The fakes are always run. ``test_a_fake_has_the_librarys_signatures`` compares them with the library where there is one.
"""

import inspect
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import FBResearchLogger, ProgressBar
from ignite.handlers.clearml_logger import ClearMLLogger
from ignite.handlers.mlflow_logger import MLflowLogger
from ignite.handlers.neptune_logger import NeptuneLogger
from ignite.handlers.polyaxon_logger import PolyaxonLogger
from ignite.handlers.visdom_logger import VisdomLogger
from ignite.handlers.wandb_logger import WandBLogger
from torch import nn

from ignite_prune import PruneHandler
from ignite_prune.handlers import SET
from ignite_prune.loggers import MaskHandler
from ignite_prune.loggers.picture import mask_picture


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))


def run(logger, by=None, event=Events.EPOCH_COMPLETED, **options):
    """Log two epochs of a pruned net."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(32).reshape(4, 8) / 7 + 0.01)
        net[1].weight.copy_(torch.arange(8).reshape(2, 4) / 3 + 0.01)
    pruner = PruneHandler(net)
    pruner.step(0.5)
    trainer = Engine(lambda engine, batch: None)
    handler = MaskHandler(pruner, **options)
    handler.attach(trainer, logger, event) if by is None else by(trainer, handler)
    trainer.run([1], max_epochs=2)
    return pruner


class Calls(list):
    """What was called, with arguments bound to the library's signature."""

    def of(self, function):
        signature = inspect.signature(function)

        def call(*args, **kwargs):
            self.append((function.__name__, signature.bind(*args, **kwargs).arguments))

        return call

    def named(self, name):
        return [arguments for called, arguments in self if called == name]


# Signatures of the libraries, without self


def log(data, step=None, commit=None): ...


def Image(
    data_or_path, mode=None, caption=None, grouping=None, classes=None, boxes=None, masks=None, file_type=None
): ...


def Histogram(sequence=None, np_histogram=None, num_bins=64): ...


def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None): ...


def log_image(image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=False): ...


def report_scalar(title, series, value, iteration): ...


def report_image(
    title,
    series,
    iteration=None,
    local_path=None,
    image=None,
    matrix=None,
    max_image_history=None,
    delete_after_upload=False,
    url=None,
): ...


def add_histogram(title, series, step, hist_data, increase_histogram_update_call_counter=True): ...


def append(value, *, step=None, timestamp=None, wait=False, **kwargs): ...


def as_image(image, autoscale=True): ...


def line(Y, X=None, win=None, env=None, opts=None, update=None, name=None): ...


def image(img, win=None, env=None, opts=None): ...


def histogram(X, win=None, env=None, opts=None): ...


def save(envs): ...


class polyaxon:
    def log_metrics(step=None, timestamp=None, **metrics): ...

    def log_image(data, name=None, step=None, timestamp=None, rescale=1, dataformats="CHW", ext=None): ...

    def log_histogram(name, values, bins, max_bins=None, step=None, timestamp=None): ...


def made(kind, **attributes):
    logger = kind.__new__(kind)
    vars(logger).update(attributes)
    return logger


def fake_image(values):
    assert values.dtype == np.uint8 and values.shape[2] == 3 and values.max() > 200
    return values


def test_wandb():
    calls = Calls()
    library = SimpleNamespace(log=calls.of(log), Image=calls.of(Image), Histogram=calls.of(Histogram))
    pruner = run(made(WandBLogger, _wandb=library))
    assert [call["step"] for call in calls.named("log")] == [1, 2]
    found = calls.named("log")[-1]["data"]
    assert found["sparsity/global"] == 0.5 == pruner.sparsity
    assert set(found) == {
        "sparsity/global",
        *(f"{kind}/{n}.weight" for kind in ("sparsity", "flips", "masks", "weights", "saliency") for n in (0, 1)),
    }
    fake_image(calls.named("Image")[0]["data_or_path"])
    assert sum(len(call["sequence"]) for call in calls.named("Histogram")[:2]) == 2 * pruner.masks.kept("0.weight")


def test_mlflow(monkeypatch):
    calls = Calls()
    library = SimpleNamespace(log_metrics=calls.of(log_metrics), log_image=calls.of(log_image))
    monkeypatch.setitem(sys.modules, "mlflow", library)
    run(made(MLflowLogger), tag="net:a")
    assert "net_a/sparsity/global" in calls.named("log_metrics")[0]["metrics"]
    images = calls.named("log_image")
    assert [(i["key"], i["step"]) for i in images] == [
        (f"net_a/masks/{n}.weight", step) for step in (1, 2) for n in (0, 1)
    ]
    fake_image(images[0]["image"])


def test_clearml():
    calls = Calls()
    reports = SimpleNamespace(report_scalar=calls.of(report_scalar), report_image=calls.of(report_image))
    helper = SimpleNamespace(add_histogram=calls.of(add_histogram))
    run(made(ClearMLLogger, clearml_logger=reports, grad_helper=helper), tag="net")
    first = calls.named("report_scalar")[0]
    assert first == {"title": "net/sparsity", "series": "global", "value": 0.5, "iteration": 1}
    picture = calls.named("report_image")[0]
    assert (picture["title"], picture["series"], picture["iteration"]) == ("net/masks", "0.weight", 1)
    fake_image(picture["image"])
    assert {call["title"] for call in calls.named("add_histogram")} == {"net/weights", "net/saliency"}


def test_neptune(monkeypatch):
    calls = Calls()
    file = SimpleNamespace(as_image=lambda *args, **kwargs: calls.of(as_image)(*args, **kwargs) or "image")
    monkeypatch.setitem(sys.modules, "neptune", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "neptune.types", SimpleNamespace(File=file))

    class Run(dict):
        def __missing__(self, key):
            return SimpleNamespace(append=lambda *a, **k: (calls.append((key, k)), calls.of(append)(*a, **k)))

    run(made(NeptuneLogger, experiment=Run()))
    keys = {key for key, _ in calls if "/" in key}
    assert keys == {"sparsity/global", *(f"{k}/{n}.weight" for k in ("sparsity", "flips", "masks") for n in (0, 1))}
    picture = calls.named("as_image")[0]["image"]
    assert picture.dtype == np.float32 and picture.shape[2] == 3 and 0.9 < picture.max() <= 1
    assert [call["step"] for call in calls.named("append") if call["value"] == 0.5] == [1, 2]


def test_visdom():
    calls = Calls()
    vis = SimpleNamespace(env="main", **{f.__name__: calls.of(f) for f in (line, image, histogram, save)})
    executor = SimpleNamespace(submit=lambda function, **kwargs: function(**kwargs))
    run(made(VisdomLogger, vis=vis, executor=executor))
    lines = [call for call in calls.named("line") if call["win"] == "sparsity/global"]
    assert [(call["X"], call["Y"], call["update"]) for call in lines] == [
        ([1], [0.5], "append"),
        ([2], [0.5], "append"),
    ]
    assert calls.named("image")[0]["img"].shape[0] == 3 and calls.named("save")[-1] == {"envs": ["main"]}
    assert len(calls.named("histogram")) == 8


@pytest.mark.parametrize("version", [0, 1])
def test_polyaxon(version):
    calls = Calls()
    experiment = type("Run" if version else "Experiment", (), {})()
    names = ("log_metrics", "log_image", "log_histogram") if version else ("log_metrics",)
    vars(experiment).update({name: calls.of(getattr(polyaxon, name)) for name in names})
    run(made(PolyaxonLogger, experiment=experiment))
    assert [(c["step"], c["metrics"]["sparsity/global"]) for c in calls.named("log_metrics")] == [(1, 0.5), (2, 0.5)]
    if version:
        picture = calls.named("log_image")[0]
        assert picture["dataformats"] == "HWC" and fake_image(picture["data"]) is not None
        assert calls.named("log_histogram")[0]["step"] == 1


def test_text(capsys):
    said = []
    log = logging.Logger("run")
    log.handle = lambda record: said.append(record.getMessage())
    run(FBResearchLogger(log), tag="ignored")
    assert said[0] == "sparsity 0.5000 at step 1 (0.weight 0.4375, 1.weight 0.7500)" and "step 2" in said[1]
    bar = ProgressBar()
    run(bar, by=lambda trainer, handler: (bar.attach(trainer), handler.attach(trainer, bar)))
    assert "sparsity 0.5000 at step 2 (0.weight 0.4375, 1.weight 0.7500)" in "".join(capsys.readouterr())


def test_several_events_filtered_ones_and_other_loggers():
    said = []
    log = logging.Logger("run")
    log.handle = lambda record: said.append(record.getMessage())
    run(FBResearchLogger(log), event=Events.EPOCH_COMPLETED(every=2) | Events.EPOCH_STARTED(once=1))
    assert [line.split("step ")[1][0] for line in said] == ["1", "2"]
    with pytest.raises(RuntimeError, match=r"only with TensorboardLogger, .* ProgressBar, but given <class 'list'"):
        run([])


def test_a_handler_of_sparse_training_is_logged_too():
    said = []
    log = logging.Logger("run")
    log.handle = lambda record: said.append(record.getMessage())
    net = model_of()
    pruner = SET(net, torch.optim.SGD(net.parameters(), lr=0.1), sparsity=0.5, every=2, end=9)
    trainer = Engine(lambda engine, batch: None)
    MaskHandler(pruner).attach(trainer, FBResearchLogger(log))
    trainer.run([1], max_epochs=1)
    assert said[0].startswith("sparsity 0.5000 at step 1")


def test_long_masks_are_legible():
    """A 10 x 512 mask is 120 pixels high; every row keeps its colour over its height."""
    mask = torch.rand(10, 512, generator=torch.Generator().manual_seed(0)) > 0.5
    picture = mask_picture(mask)
    assert tuple(picture.shape) == (3, 130, 512)
    assert torch.equal(picture[0, 6::13] > 0.5, mask)
    assert tuple(mask_picture(mask.T).shape) == (3, 512, 130)
    assert torch.equal(mask_picture(mask.T)[0, :, 6::13] > 0.5, mask.T)
    for shape in ((1, 3000), (3000, 2), (2, 64, 3, 3), (700, 5), (1, 1)):
        sides = mask_picture(torch.ones(shape, dtype=torch.bool)).shape[1:]
        assert max(sides) <= 512 and max(sides) <= 5 * min(sides), shape


# The libraries themselves, offline


def test_real_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with WandBLogger(project="test", dir=str(tmp_path), mode="offline") as logger:
        run(logger)
        files = logger.run.dir
        assert logger.run.summary["sparsity/global"] == 0.5
    pictures = list((tmp_path / "wandb").rglob("*.png"))
    assert len(pictures) == 4 and files


def test_real_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/runs")
    with MLflowLogger(tracking_uri=f"file://{tmp_path}/runs") as logger:
        run(logger)
        name = logger.active_run.info.run_id
    client = mlflow.MlflowClient(f"file://{tmp_path}/runs")
    assert [(m.step, m.value) for m in client.get_metric_history(name, "sparsity/global")] == [(1, 0.5), (2, 0.5)]
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_real_clearml(tmp_path, monkeypatch):
    clearml = pytest.importorskip("clearml")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path))
    ClearMLLogger.set_bypass_mode(True)
    with pytest.warns(UserWarning, match="bypass"):
        logger = ClearMLLogger(project_name="p", task_name="t")
    with logger:
        run(logger)
        folder = logger.get_task().get_offline_mode_folder()
        clearml.Logger.current_logger().flush(wait=True)
        written = "".join(path.read_text() for path in folder.rglob("metrics.jsonl"))
    assert '"metric": "sparsity"' in written and '"variant": "global"' in written
    assert '"masks"' in written and '"weights"' in written


def test_real_neptune(tmp_path, monkeypatch):
    pytest.importorskip("neptune")
    monkeypatch.chdir(tmp_path)
    with NeptuneLogger(project="test/test", mode="offline", capture_stdout=False, capture_stderr=False) as logger:
        run(logger)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b'"sparsity"' in written and b'"masks"' in written


def test_real_visdom(tmp_path):
    pytest.importorskip("visdom")
    log = tmp_path / "log.json"
    with VisdomLogger(offline=True, log_to_filename=str(log), num_workers=0) as logger:
        run(logger)
    written = log.read_text()
    assert '"sparsity/global"' in written and '"masks/0.weight"' in written and '"weights/0.weight"' in written


def test_real_polyaxon(tmp_path, monkeypatch):
    pytest.importorskip("polyaxon")
    monkeypatch.setenv("POLYAXON_OFFLINE", "true")
    from polyaxon.tracking import Run

    outputs = str(tmp_path / "outputs")
    logger = made(PolyaxonLogger)
    logger.__init__(
        owner="o",
        project="p",
        is_offline=True,
        artifacts_path=outputs,
        track_code=False,
        track_env=False,
        track_logs=False,
    )
    assert isinstance(logger.experiment, Run)
    run(logger)
    logger.close()
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert any("global" in name for name in written) or any("metric" in str(p) for p in tmp_path.rglob("*")), written


@pytest.mark.parametrize("library", ["wandb", "mlflow", "clearml", "neptune", "visdom", "polyaxon"])
def test_a_fake_has_the_librarys_signatures(library):
    module = pytest.importorskip(library)
    if library == "wandb":
        pairs = [
            (log, module.sdk.wandb_run.Run.log),
            (Image, module.Image.__init__),
            (Histogram, module.Histogram.__init__),
        ]
    elif library == "mlflow":
        pairs = [(log_metrics, module.log_metrics), (log_image, module.log_image)]
    elif library == "clearml":
        from clearml.binding.frameworks.tensorflow_bind import WeightsGradientHistHelper as Helper

        pairs = [(report_scalar, module.Logger.report_scalar), (report_image, module.Logger.report_image)]
        pairs += [(add_histogram, Helper.add_histogram)]
    elif library == "neptune":
        from neptune.handler import Handler
        from neptune.types import File

        pairs = [(append, Handler.append), (as_image, File.as_image)]
    elif library == "visdom":
        pairs = [(each, getattr(module.Visdom, each.__name__)) for each in (line, image, histogram, save)]
    else:
        from polyaxon.tracking import Run

        pairs = [(getattr(polyaxon, n), getattr(Run, n)) for n in ("log_metrics", "log_image", "log_histogram")]
    for fake, real in pairs:
        there = [name for name in inspect.signature(inspect.unwrap(real)).parameters if name != "self"]
        assert set(inspect.signature(fake).parameters) <= {*there, "kwargs", "metrics"}, fake.__name__
