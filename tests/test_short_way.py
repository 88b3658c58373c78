"""How far one update travels: the functions and files of this package that it runs through, and how deep they call."""

import subprocess
import sys

_MEASURE = """
import os, sys
import torch
from torch import nn
import ignite_prune
from ignite_prune import PruneHandler

ROOT = os.path.dirname(ignite_prune.__file__)


class Way:
    def __enter__(self):
        self.functions, self.depth, self.deepest = set(), 0, 0
        sys.setprofile(self.see)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        print(len(self.functions), len({file for file, _ in self.functions}), self.deepest)

    def see(self, frame, event, _):
        code = frame.f_code
        if code.co_filename.startswith(ROOT) and event in ("call", "return"):
            self.depth += 1 if event == "call" else -1
            self.deepest = max(self.deepest, self.depth)
            if event == "call" and not code.co_name.startswith("<"):  # comprehensions are part of their function
                self.functions.add((code.co_filename, code.co_qualname))


def made():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


PruneHandler(*made()).step(0.5)  # imports what is imported when it is used
given = made()
with Way():
    pruner = PruneHandler(*given)
with Way():
    pruner.step(0.5)
assert pruner.sparsity == 0.5
"""


def test_a_magnitude_update_of_two_layers_is_a_short_way():
    """In a process of its own: what other tests import or initialise makes ways longer."""
    ways = subprocess.run([sys.executable, "-c", _MEASURE], check=True, capture_output=True, text=True).stdout
    (made, made_in, made_deep), (step, step_in, step_deep) = (map(int, line.split()) for line in ways.splitlines())
    assert made <= 30 and made_in <= 12 and made_deep <= 12, ways
    assert step <= 45 and step_in <= 12 and step_deep <= 12, ways
