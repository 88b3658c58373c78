"""How units pass through each of PyTorch's core operations: ``python benchmarks/coverage.py`` writes the page.

torch tags about 160 of its operations as core: the set that all others can be expressed by. Numbers are those of the
installed version of torch.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ignite_prune.structure.tracing.rules import RULES

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"

KEEPS = {
    "addmm": "nothing: the contracted inputs go with the weight's",
    "along": "the dimensions that it works along",
    "attention": "positions and the size of a head",
    "batch_norm": "batch and space",
    "cat": "nothing: the parts go on side by side",
    "col2im": "windows and space; the entries of one channel are one unit",
    "constant": "nothing, if a trial shows that the program computes the size",
    "convolution": "kernel, batch and space; groups lose equally many",
    "copied": "nothing",
    "cut": "the dimension, unless a trial shows that the program computes equal parts",
    "diagonal": "the two dimensions of the diagonal",
    "distances": "the rows; units that are 0 in both may go",
    "embedding": "the rows",
    "embedding_bag": "the rows",
    "expand": "dimensions of size 1",
    "filled": "nothing",
    "gather": "the dimension of the positions",
    "index": "the indexed dimensions",
    "index_put": "the dimensions up to the last indexed one",
    "index_select": "the indexed dimension",
    "made_of_shape": "everything: the size is the program's",
    "masked_same": "nothing",
    "matmul": "nothing, where pruned units are 0 in a factor; else the contracted dimension",
    "of_data": "everything: the size depends on data",
    "pad": "the padded dimensions",
    "permute": "nothing",
    "pointwise": "nothing: equal dimensions are tied",
    "reduce": "the reduced dimensions, unless they are summed and 0 for pruned units",
    "repeat": "dimensions of size 1",
    "reshape": "dimensions split at written sizes, unless a trial shows that the program computes them",
    "same": "nothing",
    "sampled": "space and positions",
    "scatter": "the dimension of the positions",
    "scattered": "the dimension of the part",
    "select": "the dimension that it takes an index of",
    "spatial": "space",
    "split": "the dimension, unless a trial shows that the program computes equal parts",
    "squeeze": "the removed dimension",
    "unsqueeze": "nothing",
    "where": "nothing: equal dimensions are tied",
}  # fmt: skip
"""By the name of a rule's function: the dimensions that keep their size."""

FREEZES = {
    "resize_": "it changes a tensor's size in place",
    "_adaptive_avg_pool2d_backward": "backward",
    "_adaptive_avg_pool3d_backward": "backward",
    "_local_scalar_dense": "it gives a number that depends on data",
    "_native_batch_norm_legit": "it has statistics as outputs; `batch_norm`, which a model calls, has a rule",
    "_pdist_forward": "distances of pairs of rows in a packed order",
    "as_strided": "strides may mix all dimensions",
    "empty_strided": "strides may mix all dimensions",
    "masked_scatter": "which entries are written depends on data",
    "native_group_norm": "it has statistics as outputs; `group_norm`, which a model calls, has a rule",
    "native_layer_norm": "it has statistics as outputs; `layer_norm`, which a model calls, has a rule",
}
"""Why operations without a rule freeze all dimensions of their inputs."""

HEAD = """# Operations that units pass through

Written by `python benchmarks/coverage.py` for torch {torch}; see [structured pruning](structured.md#coupled-units). The
operations are those that torch tags as core: all others can be expressed by them, and an operation without a rule of
its own is followed through those that it consists of. An operation is handled by

- a **rule** in `ignite_prune/structure/tracing/rules/`: {rules} of {all};
- the **elementwise** rule, because torch tags it as pointwise: {pointwise};
- or it **freezes** all dimensions of its inputs: {frozen}, of which {backward} occur in backward passes alone.

There are rules for {more} other operations too, such as `linear`, `scaled_dot_product_attention` and `lstm`.

| operation | handled by | what keeps its size |
|---|---|---|
"""


def core_operations() -> dict[str, bool]:
    """Return the names of torch's core operations on tensors, and whether they are tagged as elementwise."""
    found = dict[str, bool]()
    # dir(torch.ops.aten) lists those that have been used in this process alone
    registered = (each.removeprefix("aten::") for each in torch._C._dispatch_get_all_op_names() if each[:6] == "aten::")
    for name in sorted({each.partition(".")[0] for each in registered}):
        packet = getattr(torch.ops.aten, name)
        if not isinstance(packet, torch._ops.OpOverloadPacket):
            continue
        each = [getattr(packet, kind) for kind in packet.overloads()]
        if any(torch.Tag.core in op.tags for op in each) and not name.startswith("sym_"):
            found[name] = any(torch.Tag.pointwise in op.tags for op in each)
    return found


def rows() -> dict[str, tuple[str, str]]:
    """Return how each core operation is handled, and what keeps its size."""
    found = dict[str, tuple[str, str]]()
    for name, is_pointwise in core_operations().items():
        if name in RULES:
            found[name] = ("rule", KEEPS[RULES[name].__name__])
        elif is_pointwise:
            found[name] = ("elementwise", KEEPS["pointwise"])
        else:
            found[name] = ("freezes", "everything: " + ("backward" if "backward" in name else FREEZES[name]))
    return found


def page() -> str:
    """Return the page in Markdown."""
    found = rows()
    kinds = [kind for kind, _ in found.values()]
    head = HEAD.format(
        torch=torch.__version__.partition("+")[0],
        all=len(found),
        rules=kinds.count("rule"),
        pointwise=kinds.count("elementwise"),
        frozen=kinds.count("freezes"),
        backward=sum("backward" in name for name in found),
        more=len(set(RULES) - set(found)),
    )
    return head + "".join(f"| `{name}` | {kind} | {keeps} |\n" for name, (kind, keeps) in found.items())


if __name__ == "__main__":
    PAGE.write_text(page())
