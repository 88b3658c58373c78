"""Export of models and masks: small files, sparse inference, ONNX, graphs."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.export.exported_program import to_exported_program
    from ignite_prune.export.inference import SparseReport, sparse_inference, to_dense
    from ignite_prune.export.networkx_graph import to_networkx
    from ignite_prune.export.onnx_model import to_onnx
    from ignite_prune.export.pretrained import SavedModel, save_pretrained
    from ignite_prune.export.sparse_conv import SparseConv
    from ignite_prune.export.sparse_file import Contents, load, read, save
    from ignite_prune.export.sparse_linear import SparseLinear

__all__ = [
    "Contents",
    "SavedModel",
    "SparseConv",
    "SparseLinear",
    "SparseReport",
    "load",
    "read",
    "save",
    "save_pretrained",
    "sparse_inference",
    "to_dense",
    "to_exported_program",
    "to_networkx",
    "to_onnx",
]

_FILES = {
    "Contents": "sparse_file",
    "load": "sparse_file",
    "read": "sparse_file",
    "save": "sparse_file",
    "SavedModel": "pretrained",
    "save_pretrained": "pretrained",
    "SparseConv": "sparse_conv",
    "SparseLinear": "sparse_linear",
    "SparseReport": "inference",
    "sparse_inference": "inference",
    "to_dense": "inference",
    "to_exported_program": "exported_program",
    "to_networkx": "networkx_graph",
    "to_onnx": "onnx_model",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
