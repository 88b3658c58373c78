"""Export of models and masks: small files, sparse inference, ONNX, graphs."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.export.networkx_graph import to_networkx
    from ignite_prune.export.sparse_file import Contents, load, read, save

__all__ = ["Contents", "load", "read", "save", "to_networkx"]

_FILES = {
    "Contents": "sparse_file",
    "load": "sparse_file",
    "read": "sparse_file",
    "save": "sparse_file",
    "to_networkx": "networkx_graph",
}
__getattr__ = importer(__name__, _FILES)
