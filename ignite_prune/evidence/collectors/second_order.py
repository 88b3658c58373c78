"""Evidence of second order: the Hessian's diagonal, by several methods, and the Hessian times the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_generator_state
from ignite_prune._utils.nested import mapped, tensors_in
from ignite_prune.core.batches import Batch
from ignite_prune.core.gradient_hooks import unmasked
from ignite_prune.evidence.collectors.base import Collector, N
from ignite_prune.evidence.running_sums import sum_dtype
from ignite_prune.saliency.needs import Curvature, HessianGradient
from ignite_prune.saliency.obd import Exact, GaussNewton, Hutchinson

_CHUNK = 64


class SecondOrder(Collector[N]):
    """Base of collectors that run passes of their own: one number an entry, a mean over samples."""

    probes = True
    backward = True
    of_gradients = True
    unseen = "nothing has been gathered yet"

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def _add(self, found: Mapping[str, Tensor], weight: float) -> None:
        for name, value in found.items():
            running = self.running(name)
            running.add_(value.detach().to(running.dtype), alpha=weight)
            self.record.count(name, weight)


class HessianGradients(SecondOrder[HessianGradient]):
    """Collects :class:`~ignite_prune.saliency.needs.HessianGradient`."""

    def on_batch(self, batch: Batch) -> None:
        trained = self._trained()
        with twice_differentiable():
            output = batch.output()
        if not any(tensor.is_floating_point() for tensor in tensors_in(output)):
            raise TypeError(
                "GraSP() divides the model's outputs by its temperature, so they should be a tensor, or tensors in "
                f"mappings, lists and tuples, but were {type(output)}"
            )
        cooled = mapped(output, lambda o: o / self.need.temperature if o.is_floating_point() else o)
        first = gradients_of(batch.loss(cooled), trained, create_graph=True)
        flow = sum((g * g.detach()).sum() for g in first.values())
        self._add(gradients_of(flow, {name: trained[name] for name in first}), batch.size)


class CurvatureSums(SecondOrder[Curvature]):
    """Collects :class:`~ignite_prune.saliency.needs.Curvature` by its method."""

    def prepare(self) -> None:
        method, entries = self.need.method, sum(p.numel() for p in self.parameters.values())
        if isinstance(method, Exact) and entries > method.limit:
            raise ValueError(
                f"OBD(Exact()) takes a backward pass for each of {entries:,} weights, more than its limit of "
                f"{method.limit:,}; use Hutchinson(), GaussNewton() or EmpiricalFisher(), or raise the limit"
            )
        self._signs = torch.Generator()
        self.goes_on = isinstance(method, Hutchinson)
        if isinstance(method, Hutchinson):
            self._signs.manual_seed(method.seed)

    def on_batch(self, batch: Batch) -> None:
        method, trained = self.need.method, self._trained()
        if isinstance(method, GaussNewton):
            self._add(gauss_newton_diagonal(batch, trained), batch.size)
            return
        with twice_differentiable():
            loss = batch.loss()
        first = gradients_of(loss, trained, create_graph=True)
        reached = {name: trained[name] for name in first}
        if isinstance(method, Exact):
            self._add(hessian_diagonal(first, reached), batch.size)
            return
        for _ in range(method.samples):
            signs = {name: self._random_signs(p) for name, p in reached.items()}
            slope = sum((g * signs[name]).sum() for name, g in first.items())
            product = gradients_of(slope, reached, retain_graph=True)
            estimate = {name: v * product[name] for name, v in signs.items() if name in product}
            self._add(estimate, batch.size / method.samples)

    def _random_signs(self, like: Tensor) -> Tensor:
        bits = torch.randint(0, 2, like.shape, generator=self._signs)
        return bits.to(like.device, like.dtype).mul_(2).sub_(1)

    def extras(self) -> dict[str, Any]:
        return {"signs": self._signs.get_state()}

    def check_extras(self, state: Mapping[str, Any]) -> None:
        check_generator_state(self._signs, state.get("signs"))

    def load_extras(self, state: Mapping[str, Any]) -> None:
        self._signs.set_state(state["signs"].cpu())


def twice_differentiable() -> AbstractContextManager[Any]:
    """Compute attention in a way that has a second derivative; torch before 2.3 has no such switch."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def gradients_of(value: Any, parameters: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Return the gradients of a scalar with respect to the parameters that it depends on; ``.grad`` does not change."""
    if not parameters or not isinstance(value, Tensor) or not value.requires_grad:
        return {}
    with unmasked():
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, **options)
    return {name: g for name, g in zip(parameters, found) if g is not None}


def hessian_diagonal(first: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the diagonal of the Hessian from gradients with a graph: a batched backward pass for each entry."""
    found = {}
    for name, gradient in first.items():
        flat = gradient.reshape(-1)
        if not flat.requires_grad:  # linear in this parameter alone
            found[name] = torch.zeros_like(gradient)
            continue
        diagonal = torch.zeros_like(flat)
        for start in range(0, flat.numel(), _CHUNK):
            picks = torch.zeros_like(flat).repeat(min(_CHUNK, flat.numel() - start), 1)
            picks.diagonal(start).fill_(1)
            rows = _many_backwards(flat, parameters[name], picks)
            if rows is not None:
                diagonal[start : start + _CHUNK] = rows.flatten(1)[:, start : start + _CHUNK].diagonal()
        found[name] = diagonal.view_as(gradient)
    return found


def gauss_newton_diagonal(batch: Batch, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Return the diagonal of :math:`J^T H_L J`; the loss's Hessian in the outputs is taken sample by sample."""
    output = batch.output()
    if not isinstance(output, Tensor):
        raise TypeError(f"GaussNewton() needs a model whose output is one tensor, but it was {type(output)}")
    if not output.requires_grad:
        return {}
    logits = output.detach().to(sum_dtype(output)).requires_grad_()
    slope = gradients_of(batch.loss(logits), {"logits": logits}, create_graph=True).get("logits")
    if slope is None:
        raise ValueError(
            "GaussNewton() needs a loss that depends on the model's output, but loss_fn gave one without a gradient in "
            "it (detached, or computed under no_grad)"
        )
    n, k = output.shape[0], output[0].numel()
    root = _root(slope, logits, n, k).to(output.dtype)
    sums, flat = dict[str, Tensor](), output.reshape(n * k)
    for start in range(0, n * k, _CHUNK):
        picks = _picks(root, start, min(start + _CHUNK, n * k))
        for name, p in parameters.items():
            rows = _many_backwards(flat, p, picks)
            if rows is not None:
                squares = rows.square().sum(0)
                sums[name] = sums[name] + squares if name in sums else squares
    return sums


def _root(slope: Tensor, logits: Tensor, n: int, k: int) -> Tensor:
    """Return ``L`` with ``L Lᵀ`` the Hessian of the loss in each sample's outputs, ``(n, k, k)``."""
    hessian = torch.zeros(n, k, k, dtype=logits.dtype, device=logits.device)
    flat = slope.reshape(n, k)
    if flat.requires_grad:
        for j in range(k):
            (row,) = torch.autograd.grad(flat[:, j].sum(), logits, retain_graph=True)
            hessian[:, j] = row.reshape(n, k)
    values, vectors = torch.linalg.eigh(hessian.double())
    if values.min() < -1e-6 * values.abs().max():
        raise ValueError("GaussNewton() needs a loss that is convex in the model's outputs, and this one is not")
    root: Tensor = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    return root.to(logits.dtype)


def _picks(root: Tensor, start: int, stop: int) -> Tensor:
    """Return some rows of the block-diagonal matrix of all samples' ``Lᵀ``, which is too large as a whole."""
    n, k, _ = root.shape
    rows = torch.arange(start, stop, device=root.device)
    sample = rows // k
    picks = root.new_zeros(len(rows), n, k)
    picks[rows - start, sample] = root[sample, :, rows % k]
    return picks.view(len(rows), n * k)


def _many_backwards(values: Tensor, parameter: Tensor, picks: Tensor) -> Tensor | None:
    """Return the gradients of ``picks @ values``, one a row; batched if every operation has a batching rule."""
    backward: Callable[..., Any] = partial(torch.autograd.grad, values, parameter, retain_graph=True, allow_unused=True)
    with unmasked():
        try:
            rows: Tensor | None = backward(picks, is_grads_batched=True)[0]
        except RuntimeError:  # an operation without a batching rule
            one_by_one = [backward(pick)[0] for pick in picks]
            rows = None if one_by_one[0] is None else torch.stack(one_by_one)
    return rows
