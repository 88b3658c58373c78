"""The exact choice over parts equals the choice over wholes, whatever ties, types, shards and copies there are."""

import random
import threading

import pytest
import torch

from ignite_prune._utils.shard import Part
from ignite_prune._utils.sharded_top import Ranking, Scored, keep_top_of_all
from ignite_prune._utils.topk import keep_top

SHAPES = [(7, 5), (64, 300), (300, 64), (1000,), (5,), (3, 40, 2)]
KINDS = {
    "normal": lambda x: x.abs(),
    "few values": lambda x: (x.abs() * 2).round() / 2,
    "bfloat16": lambda x: x.abs().bfloat16(),
    "all equal": torch.zeros_like,
    "float64": lambda x: x.abs().double() + x.double().square() * 1e-9,
    "mostly zero, of both signs": lambda x: x * (x.abs() > 0.8),
}


class Threads:
    """Collectives of threads that stand for ranks."""

    def __init__(self, rank, ranks, shared, barrier):
        self.rank, self.ranks, self._shared, self._barrier = rank, ranks, shared, barrier
        self.messages = 0

    def collect(self, tensor, what=""):
        self.messages += 1
        self._shared[self.rank] = tensor.clone()
        self._barrier.wait()
        found = torch.stack(list(self._shared))
        self._barrier.wait()
        return found

    def sum(self, tensor, what=""):
        return self.collect(tensor).sum(0)


def box(shape, dim, index, parts, counted):
    chunk = -(-shape[dim] // parts)
    first = min(chunk * index, shape[dim])
    start, size = [0] * len(shape), list(shape)
    start[dim], size[dim] = first, min(chunk, shape[dim] - first)
    return Part(tuple(shape), tuple(start), tuple(size), counted)


def chosen(full, alive, rankings, dims, parts, copies):
    ranks = parts * copies
    shared, barrier, messages = [None] * ranks, threading.Barrier(ranks, timeout=20), []
    found = [torch.zeros(scores.shape, dtype=torch.bool) for scores in full]

    def work(rank):
        tensors = []
        for scores, living, dim in zip(full, alive, dims):
            part = box(scores.shape, dim, rank // copies, parts, rank % copies == 0)
            own, mask = part.of(scores).contiguous(), None if living is None else part.of(living).contiguous()
            count = own.numel() if mask is None else int(mask.sum())
            total = scores.numel() if living is None else int(living.sum())
            tensors.append(Scored(lambda own=own: own, mask, count, part, total))
        exchange = Threads(rank, ranks, shared, barrier)
        masks = keep_top_of_all(tensors, rankings, exchange)
        for index, mask in masks.items():
            tensors[index].part.of(found[index])[...] = mask
        messages.append(exchange.messages)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(messages) == ranks
    return found, messages[0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_choice_over_wholes(kind):
    dice, generator = random.Random(kind), torch.Generator().manual_seed(len(kind))
    for _ in range(5):
        shapes = [dice.choice(SHAPES) for _ in range(dice.randint(1, 5))]
        full = [KINDS[kind](torch.randn(shape, generator=generator)) for shape in shapes]
        alive = [torch.rand(s, generator=generator) < 0.6 if dice.random() < 0.5 else None for s in shapes]
        living = [f.numel() if a is None else int(a.sum()) for f, a in zip(full, alive)]
        groups = [list(range(len(full)))] if dice.random() < 0.5 else [[index] for index in range(len(full))]
        rankings = [Ranking(group, int(sum(living[i] for i in group) * dice.random())) for group in groups]
        dims = [dice.randrange(len(shape)) for shape in shapes]
        found, messages = chosen(full, alive, rankings, dims, dice.randint(1, 3), dice.randint(1, 2))
        assert messages <= 8
        for ranking in rankings:
            at = ranking.tensors
            scores = [lambda i=i: full[i] for i in at]
            wanted = keep_top(scores, [alive[i] for i in at], [living[i] for i in at], ranking.keep)
            assert all(torch.equal(found[i], mask) for i, mask in zip(at, wanted)), kind
