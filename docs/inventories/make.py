"""Writes the small inventories that intersphinx takes without a network: ``python docs/inventories/make.py``.

An entry is a name and its page on the library's own site; ``$`` stands for the name, as in the format.
"""

import zlib
from pathlib import Path

PYTHON = {
    "collections.abc.Mapping": "library/collections.abc.html#$",
    "collections.abc.Sequence": "library/collections.abc.html#$",
    "collections.abc.Callable": "library/collections.abc.html#$",
    "collections.abc.Iterator": "library/collections.abc.html#$",
    "collections.abc.Iterable": "library/collections.abc.html#$",
    "typing.Any": "library/typing.html#$",
    "pathlib.Path": "library/pathlib.html#$",
    "ValueError": "library/exceptions.html#$",
    "TypeError": "library/exceptions.html#$",
    "RuntimeError": "library/exceptions.html#$",
    "dict": "library/stdtypes.html#$",
    "str": "library/stdtypes.html#$",
    "int": "library/functions.html#$",
    "float": "library/functions.html#$",
    "bool": "library/functions.html#$",
}
TORCH = {
    "torch.Tensor": "tensors.html#$",
    "torch.Generator": "generated/torch.Generator.html#$",
    "torch.device": "tensor_attributes.html#$",
    "torch.dtype": "tensor_attributes.html#$",
    "torch.nn.Module": "generated/torch.nn.Module.html#$",
    "torch.nn.Linear": "generated/torch.nn.Linear.html#$",
    "torch.nn.Conv2d": "generated/torch.nn.Conv2d.html#$",
    "torch.nn.MultiheadAttention": "generated/torch.nn.MultiheadAttention.html#$",
    "torch.nn.parameter.Parameter": "generated/torch.nn.parameter.Parameter.html#$",
    "torch.optim.Optimizer": "optim.html#$",
    "torch.nn.parallel.DistributedDataParallel": "generated/torch.nn.parallel.DistributedDataParallel.html#$",
}
IGNITE = {
    "ignite.engine.engine.Engine": "generated/ignite.engine.engine.Engine.html#$",
    "ignite.engine.events.Events": "generated/ignite.engine.events.Events.html#$",
    "ignite.engine.events.State": "generated/ignite.engine.events.State.html#$",
    "ignite.handlers.checkpoint.Checkpoint": "generated/ignite.handlers.checkpoint.Checkpoint.html#$",
}


def write(name: str, entries: dict[str, str]) -> None:
    """Write an inventory of Sphinx's version 2."""
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = "".join(f"{entry} py:class 1 {page} -\n" for entry, page in sorted(entries.items()))
    Path(__file__).with_name(f"{name}.inv").write_bytes(head.encode() + zlib.compress(lines.encode(), 9))


if __name__ == "__main__":
    write("python", PYTHON)
    write("torch", TORCH)
    write("ignite", IGNITE)
