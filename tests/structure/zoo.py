"""Models that must shrink: small, of every kind, with inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first, self.norm1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.second, self.norm2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 6 * i, 6, 3, padding=1) for i in range(3))
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(22), nn.Linear(22 * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.head(F.adaptive_avg_pool2d(self.norm(x), 2).flatten(1))


class Inverted(nn.Module):
    def __init__(self, multiplier=1):
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12 * multiplier, 3, padding=1, groups=12)
        self.project, self.head = nn.Conv2d(12 * multiplier, 6, 1), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu6(self.depth(F.hardswish(self.norm(self.expand(x)))))
        return self.head(F.adaptive_avg_pool2d(self.project(x), 1).flatten(1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped, self.last = nn.Conv2d(12, 16, 3, padding=1, groups=4), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        return self.last(F.relu(self.grouped(F.relu(self.first(x))))).mean((2, 3))


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.act, self.head = nn.PReLU(8), nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = self.act(self.conv(x))
        x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.adaptive_max_pool2d(x, 4).view(x.size(0), -1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up, self.merge = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(12, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        skip = F.relu(self.down1(x))
        x = self.up(F.relu(self.down2(skip)))
        return self.out(F.relu(self.merge(torch.cat([skip, x], 1))))


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 20, 1), nn.Conv2d(5, 3, 1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        return self.out(F.relu(self.shuffle(self.wide(F.relu(self.conv(x))))))


class Shuffled(nn.Module):
    def __init__(self, by_hand=False):
        super().__init__()
        self.by_hand = by_hand
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.shuffle, self.out = nn.ChannelShuffle(3), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        if self.by_hand:
            n, c, h, w = x.shape
            x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        else:
            x = self.shuffle(x)
        return self.out(x).mean((2, 3))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.second, self.out = nn.Linear(6, 16), nn.Linear(8, 12), nn.Linear(6, 3)

    def forward(self, x):
        a, b = self.wide(x).chunk(2, dim=-1)
        return self.out(F.glu(self.second(a * torch.sigmoid(b)), dim=-1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = kind(6, 8, batch_first=True, **options)
        self.head = nn.Linear(8 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0].mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.outer = nn.Embedding(20, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.out = nn.Linear(6, 20, bias=False)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.randn(12))
        self.register_buffer("shift", torch.randn(12))

    def forward(self, x):
        x = self.embed(x)
        return self.out(x + self.outer(F.gelu(self.inner(x)) * self.scale + self.shift))


class Letters(nn.Module):
    """Attention by einsum, over a wall of weights; nothing in it is a layer."""

    def __init__(self):
        super().__init__()
        self.projections = nn.Parameter(torch.randn(3, 4, 6, 16) / 4)
        self.out, self.inner, self.last = nn.Parameter(torch.randn(4, 6, 16) / 4), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = torch.einsum("bni,phdi->pbhnd", x, self.projections).unbind(0)
        weights = torch.einsum("bhnd, bhmd -> bhnm", q, k).div(6**0.5).softmax(-1)
        x = torch.einsum("bhnd,hdo->bno", torch.einsum("bhnm,bhmd->bhnd", weights, v), self.out)
        return self.last(self.inner(x.movedim(1, 0)).relu().flip(0).mean(0))


class Excited(nn.Module):
    """Squeeze and excite as it is mostly written: sizes read from the shape."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 3)
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.shape
        y = self.gate(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)
        return self.out((x * y.expand_as(x) + y.expand(n, c, h, w)).view(n, c * h * w))


class Attending(nn.Module):
    """Attention over something else, of other widths, with all that the layer can be asked for."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(
            16, 4, kdim=6, vdim=10, add_bias_kv=True, add_zero_attn=True, dropout=0.1, batch_first=True
        )
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[0, -2:] = True
        return self.out(self.attend(x, x[..., :6], x[..., :10], padding)[0])


class Embedding(nn.Module):
    """Attention whose embedding may get narrower too: nothing is normalised over it."""

    def __init__(self):
        super().__init__()
        self.wide, self.attend = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        x = self.wide(x)
        return self.out(self.attend(x, x, x, need_weights=False)[0].relu())


class Translating(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Transformer(16, 4, 2, 1, 32, batch_first=True)

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[0, -2:] = True
        causal = self.body.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.body(x, x.flip(1), tgt_mask=causal, src_key_padding_mask=padding, tgt_is_causal=True)


def image(size=8):
    return torch.randn(2, 3, size, size, dtype=torch.float64)


MODELS = {
    "residual": lambda: (Residual(), image()),
    "concat": lambda: (Dense(), image()),
    "depthwise": lambda: (Inverted(), image()),
    "depthwise, two each": lambda: (Inverted(2), image()),
    "grouped": lambda: (Grouped(), image()),
    "squeeze-excite": lambda: (Squeeze(), image()),
    "U-Net": lambda: (UNet(), image()),
    "pixel shuffle": lambda: (Pixels(), image()),
    "channel shuffle": lambda: (Shuffled(), image()),
    "channel shuffle by hand": lambda: (Shuffled(True), image()),
    "chunk and GLU": lambda: (Gated(), torch.randn(4, 6, dtype=torch.float64)),
    "LSTM": lambda: (Recurrent(), torch.randint(20, (2, 5))),
    "LSTM, two layers both ways": lambda: (Recurrent(num_layers=2, bidirectional=True), torch.randint(20, (2, 5))),
    "GRU": lambda: (Recurrent(nn.GRU), torch.randint(20, (2, 5))),
    "tied": lambda: (Tied(), torch.randint(20, (2, 5))),
    "encoder": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 3)),
        torch.randn(2, 5, 16, dtype=torch.float64),
    ),
    "einsum": lambda: (Letters(), torch.randn(2, 5, 16, dtype=torch.float64)),
    "sizes from shapes": lambda: (Excited(), image()),
    "attention": lambda: (Attending(), torch.randn(2, 5, 16, dtype=torch.float64)),
    "attention, any width": lambda: (Embedding(), torch.randn(2, 5, 6, dtype=torch.float64)),
    "encoder and decoder": lambda: (Translating(), torch.randn(2, 5, 16, dtype=torch.float64)),
}
