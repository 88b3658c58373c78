"""What stands in TensorBoard's files, read back."""

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.tqdm_logger import ProgressBar
from torch import nn

from ignite_prune import PruneEvents, PruneHandler, pattern, saliency, schedule
from ignite_prune.loggers import MaskHandler
from ignite_prune.loggers.picture import mask_picture
from tests.models import WEIGHTS, batches, small_net

SHAPES = [
    (8, 4, 3, 3),
    (16, 128),
    (2000, 900),
    (7,),
    (600, 40, 3, 3),
    (4, 3, 5),
    (2, 3, 2, 2, 2),
    (),
    (1, 1),
    (0, 3),
    (1, 3000),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_mask_becomes_a_readable_picture(shape):
    for mask in (torch.ones(shape, dtype=torch.bool), torch.rand(shape) > 0.9):
        picture = mask_picture(mask)
        assert picture.dtype == torch.float32 and picture.shape[0] == 3 and max(picture.shape[1:]) <= 512
        assert picture.numel() == 0 or (picture.min() >= 0 and picture.max() <= 1)
        if mask.numel():
            assert max(picture.shape[1:]) >= 100


def test_a_picture_shows_the_mask():
    mask = torch.tensor([[True, False], [False, False], [False, True]])
    picture = mask_picture(mask)
    size = picture.shape[1] // 3
    middle = picture[:, size // 2 :: size, size // 2 :: size]
    assert torch.equal(middle[0] > 0.5, mask) and picture.shape[1:] == (3 * size, 2 * size)


def test_what_is_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(
        model, optimizer, schedule=schedule.Linear(0.8, begin=0, end=4), saliency=saliency.Magnitude()
    )
    pruner.attach(trainer, Events.EPOCH_COMPLETED)
    flips, kept = [], []
    trainer.add_event_handler(
        PruneEvents.MASKS_UPDATED,
        lambda: (flips.append(pruner.masks.flips["5.weight"]), kept.append(pruner.masks.kept("5.weight"))),
    )
    with TensorboardLogger(log_dir=str(tmp_path)) as logger:
        logger.attach(trainer, log_handler=MaskHandler(pruner), event_name=Events.EPOCH_COMPLETED)
        logger.attach_output_handler(
            trainer, Events.EPOCH_COMPLETED, tag="all", metric_names=["sparsity"], state_attributes=["sparsity"]
        )
        logger.attach_opt_params_handler(trainer, Events.EPOCH_COMPLETED, optimizer=pruner, param_name="sparsity")
        trainer.run(batches(), max_epochs=4)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert [v for _, v in scalars["sparsity/global"]] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-3)
    assert [s for s, _ in scalars["sparsity/global"]] == [1, 2, 3, 4]
    assert [v for _, v in scalars["flips/5.weight"]] == flips
    assert sum(flips) == 2048 - kept[-1] and flips[0] == 2048 - kept[0]
    assert scalars["sparsity/5.weight"][-1][1] == pytest.approx(1 - kept[-1] / 2048)
    assert scalars["all/sparsity/global"][-1][1] == pytest.approx(0.8) and "sparsity/group_0" in scalars
    assert set(events.Tags()["images"]) == {f"masks/{name}" for name in WEIGHTS}
    image = events.Images("masks/0.weight")[-1]
    assert image.step == 4 and image.encoded_image_string[:4] == b"\x89PNG" and max(image.width, image.height) <= 512
    histograms = set(events.Tags()["histograms"])
    assert histograms == {f"{kind}/{name}" for kind in ("saliency", "weights") for name in WEIGHTS}
    assert events.Histograms("weights/5.weight")[-1].histogram_value.num == kept[-1], "the survivors alone"


def test_options_and_refusals(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_net()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.cross_entropy)
    pruner = PruneHandler(model, pattern=pattern.Channel(), schedule=schedule.Constant(0.5))
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    handler = MaskHandler(
        pruner,
        tag="net",
        pictures=False,
        histograms=False,
        whitelist=["7.weight"],
        global_step_transform=lambda e, n: 77,
    )
    with TensorboardLogger(log_dir=str(tmp_path)) as logger:
        logger.attach(trainer, log_handler=handler, event_name=PruneEvents.MASKS_UPDATED(every=5))
        trainer.run(batches(), max_epochs=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"net/sparsity/global", "net/sparsity/7.weight", "net/flips/7.weight"}
    assert events.Scalars("net/sparsity/global")[0].step == 77 and not events.Tags()["images"]
    with pytest.raises(TypeError, match="pruner should be a PruneHandler"):
        MaskHandler(model)
    with pytest.raises(ValueError, match=r"no parameter '7.wieght' is pruned; near matches: '7.weight'"):
        MaskHandler(pruner, whitelist=["7.wieght"])
    with pytest.raises(RuntimeError, match="works only with TensorboardLogger"):
        handler(trainer, None, Events.EPOCH_COMPLETED)


def test_progress_bar(capsys):
    model = small_net()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.cross_entropy)
    PruneHandler(model, schedule=schedule.Constant(0.5)).attach(trainer, Events.ITERATION_COMPLETED)
    ProgressBar(persist=True, mininterval=0).attach(trainer, metric_names=["sparsity"])
    trainer.run(batches(), max_epochs=1)
    assert "sparsity=0.5" in capsys.readouterr().err
