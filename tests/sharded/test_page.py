"""The page on sharded models, as a reader would run it on two ranks."""

import re
import warnings
from pathlib import Path

import torch
from ignite.engine import Events

from tests.ranks import on_ranks

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def read(rank):
    warnings.simplefilter("ignore")
    space, (launch, *blocks) = {}, re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "idist.initialize" in launch  # these ranks are launched already
    for block in ("import ignite.distributed as idist", *blocks):
        exec(compile(block, "distributed.md", "exec"), space)
    space["trainer"].run([(torch.randn(4, 16), torch.randn(4, 8))], max_epochs=4)
    torch.distributed.barrier()  # rank 0 has written its file
    assert space["trainer"].has_event_handler(space["saver"], Events.EPOCH_COMPLETED)
    return space["pruner"].sparsity, list(map(str, Path(space["folder"]).glob("pruner*.pt")))


def test_the_page_runs():
    (sparsity, files), other = on_ranks(2, read)
    assert (sparsity, files) == other and files
    assert sparsity == 691 / 768
    assert set(torch.load(files[0], weights_only=True)["masks"]) == {"names", "shapes", "bits"}
