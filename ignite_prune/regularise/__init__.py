"""What training can be made to want beside a small loss: zeros, in units, of an amount that is learnt.

Pure functions of tensors; what attaches to an engine stands in ``ignite_prune.handlers``.
"""

from ignite_prune.regularise.lasso import gradient, norms, proximal_

__all__ = ["gradient", "norms", "proximal_"]
