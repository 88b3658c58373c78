"""The published order as a plain program: catch the first block's inputs, then prune block after block.

Written from the papers alone; nothing of the package is used.
"""

from contextlib import suppress

import torch
from torch import nn


class Caught(Exception):
    pass


@torch.no_grad()
def prune(model, blocks, data, prune_layer, sequential=True):
    """``prune_layer(weight, inputs) -> weight``, weights (out, in), inputs (tokens, in)."""
    hidden, rest = [], []

    def catch(module, args, kwargs):
        hidden.append(args[0])
        rest.append((args[1:], kwargs))
        raise Caught

    handle = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for ids in data:
        with suppress(Caught):
            model(ids)
    handle.remove()
    for block in blocks:
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        inputs = {layer: [] for layer in layers}
        handles = [
            layer.register_forward_pre_hook(lambda m, args: inputs[m].append(args[0].flatten(0, -2)))
            for layer in layers
        ]
        dense = [run(block, x, *each) for x, each in zip(hidden, rest)]
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.weight.copy_(prune_layer(layer.weight.clone(), torch.cat(inputs[layer])))
        hidden = [run(block, x, *each) for x, each in zip(hidden, rest)] if sequential else dense


def run(block, x, args, kwargs):
    kwargs = {name: [] if isinstance(value, list) else value for name, value in kwargs.items()}  # an empty cache
    output = block(x, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def wanda(sparsity):
    def prune_layer(weight, inputs):
        scores = weight.abs() * inputs.norm(dim=0)
        pruned = scores.argsort(dim=1)[:, : int(weight.shape[1] * sparsity)]
        return weight.scatter(1, pruned, 0)

    return prune_layer


def wanda_2_4(weight, inputs):
    scores = (weight.abs() * inputs.norm(dim=0)).unflatten(1, (-1, 4))
    pruned = scores.argsort(dim=2)[:, :, :2]
    return weight.unflatten(1, (-1, 4)).scatter(2, pruned, 0).flatten(1)


def sparsegpt(sparsity, step, groups=False):
    def prune_layer(weight, inputs):
        hessian = 2 / len(inputs) * inputs.T @ inputs
        hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)).to(hessian)
        upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
        for start in range(0, weight.shape[1], step):
            stop = min(start + step, weight.shape[1])
            scores = weight[:, start:stop] ** 2 / upper.diagonal()[start:stop] ** 2
            pruned = torch.zeros_like(scores, dtype=torch.bool)
            pruned.view(-1)[scores.flatten().argsort()[: int(scores.numel() * sparsity)]] = True
            for i in range(start, stop):
                if groups and i % 4 == 0:
                    now = weight[:, i : i + 4] ** 2 / upper.diagonal()[i : i + 4] ** 2
                    pruned[:, i - start : i - start + 4] = now.argsort(1).argsort(1) < 2
                kept = torch.where(pruned[:, i - start], 0, weight[:, i])
                error = (weight[:, i] - kept) / upper[i, i]
                weight[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
                weight[:, i] = kept
        return weight

    return prune_layer
