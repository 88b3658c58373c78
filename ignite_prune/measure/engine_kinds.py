"""The engines that a model can be run in; each function returns a call with the model's arguments, and a note."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.extras import needed
from ignite_prune._utils.nested import mapped
from ignite_prune.export.inference import sparse_inference
from ignite_prune.export.onnx_model import to_onnx
from ignite_prune.structure.model_io import tensors_of

EngineCall = Callable[..., Any]
Maker = Callable[[nn.Module, Any, Path], tuple[EngineCall, str]]
"""``(model, example_inputs, folder for files) -> (call, note)``; raises where the engine cannot run the model."""


def _sparse(model: nn.Module, inputs: Any, folder: Path) -> tuple[EngineCall, str]:
    found = sparse_inference(model, inputs)
    if not found.replaced:
        raise ValueError(found.reason)
    return model, f"{len(found.replaced)} of {len(found.layers)} layers replaced"


def _bfloat16(model: nn.Module, inputs: Any, folder: Path) -> tuple[EngineCall, str]:
    model.to(torch.bfloat16)

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*_cast(args), **_cast(kwargs))

    return call, ""


def _cast(value: Any) -> Any:
    return mapped(value, lambda each: each.to(torch.bfloat16) if each.is_floating_point() else each)


def _int8(model: nn.Module, inputs: Any, folder: Path) -> tuple[EngineCall, str]:
    if next((each.device.type for each in model.parameters()), "cpu") != "cpu":
        raise ValueError("torch's dynamic int8 needs the CPU")
    linear = [each for each in model.modules() if type(each) is nn.Linear]
    if not linear:
        raise ValueError("there is no linear layer")
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return quantized, "linear layers alone"


def _onnx(model: nn.Module, inputs: Any, folder: Path) -> tuple[EngineCall, str]:
    return _session(to_onnx(model, inputs, folder / "model.onnx", dynamic_batch=_has_batch(inputs))), ""


def _onnx_int8(model: nn.Module, inputs: Any, folder: Path) -> tuple[EngineCall, str]:
    needed("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    dense, small = folder / "model.onnx", folder / "int8.onnx"
    if not dense.exists():
        to_onnx(model, inputs, dense, dynamic_batch=_has_batch(inputs))
    quantize_dynamic(str(dense), str(small), weight_type=QuantType.QInt8)
    return _session(small), ""


def _has_batch(inputs: Any) -> bool:
    return all(each.dim() and len(each) > 1 for each in tensors_of(inputs))


def _session(path: Path) -> EngineCall:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def call(*args: Any, **kwargs: Any) -> Any:
        found = session.run(None, {name: each.numpy() for name, each in zip(names, tensors_of((args, kwargs)))})
        outputs = [torch.from_numpy(each) for each in found]
        return outputs[0] if len(outputs) == 1 else outputs

    return call


MAKERS: dict[str, Maker] = {
    "sparse layers": _sparse,
    "bfloat16": _bfloat16,
    "int8": _int8,
    "onnxruntime": _onnx,
    "onnxruntime int8": _onnx_int8,
}
