"""Formulas as MathML, which browsers show without a script or a network."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def _write(translator: Any, tex: str, block: bool) -> None:
    translator.body.append(tex2mathml(tex, as_block=block))
    raise nodes.SkipNode


def inline(translator: Any, node: nodes.Element) -> None:
    """Write a formula in a line."""
    _write(translator, node.astext(), False)


def display(translator: Any, node: nodes.Element) -> None:
    """Write a formula of its own."""
    _write(translator, node.astext(), True)


def setup(app: Any) -> dict[str, bool]:
    """Add the renderer."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(display, None))
    return {"parallel_read_safe": True}
