"""Keys of needs in state version 2: the representations of their fields, with the names of that version.

They are compared with the keys of loaded checkpoints, so a rename in the package must not change them; ``tests/states``
keeps checkpoints of that version.
"""

from __future__ import annotations

import inspect

from ignite_prune.saliency.needs import Need

_FUNCTIONS = {
    ("Gradients", "abs"): "add_size",
    ("Gradients", "square"): "add_square",
    ("Gradients", "product"): "add_product",
    ("Gradients", "abs-product"): "add_product_size",
    ("Gradients", "square-product"): "add_product_square",
    ("Activations", "active-share"): "active_share",
    ("Activations", "rank"): "map_rank",
    ("Activations", "abs-gradient"): "gradient_size",
    ("Activations", "product"): "product",
    ("Activations", "abs-product"): "product_size",
}


def key_in_version_2(need: Need) -> str:
    """Return the key that version 2 wrote for a need."""
    kind, values = type(need).__name__, dict(vars(need))
    named = _FUNCTIONS.get((kind, values.pop("name", None)))
    texts = [named or each.__qualname__ if inspect.isroutine(each) else repr(each) for each in values.values()]
    return f"{kind}({', '.join(texts)})"
