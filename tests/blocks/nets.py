"""Small language models in the shapes of GPT-2 and Llama, in plain torch."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

WIDTH, HEADS, VOCABULARY = 16, 2, 40


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class GPTBlock(nn.Module):
    """Norms with biases, one projection of all of attention's inputs; returns a tuple."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, mask=None):
        q, k, v = (heads(each, HEADS) for each in self.attn(self.ln_1(x)).chunk(3, -1))
        x = x + self.proj(scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.out(nn.functional.gelu(self.fc(self.ln_2(x)))), None


class GPT(nn.Module):
    def __init__(self, blocks=3):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(32, WIDTH)
        self.h, self.ln_f = nn.ModuleList(GPTBlock() for _ in range(blocks)), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        x = self.wte(ids) + self.wpe(torch.arange(length))
        for block in self.h:
            x = block(x, mask=mask)[0]
        return self.head(self.ln_f(x))


class LlamaBlock(nn.Module):
    """RMS norms, rotary positions as the model gives them, one key and value for two heads, a gated MLP."""

    def __init__(self):
        super().__init__()
        self.norm, self.post_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        size = WIDTH // HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, n, bias=False) for n in (WIDTH, size, size))
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, 24, bias=False), nn.Linear(WIDTH, 24, bias=False)
        self.down = nn.Linear(24, WIDTH, bias=False)

    def forward(self, x, *, rotary, seen):
        seen.append(self)  # a cache: each call adds to it
        y = self.norm(x)
        q, k, v = heads(self.q(y), HEADS), heads(self.k(y), 1), heads(self.v(y), 1)
        q, k = (each * rotary[0] + torch.cat([-each[..., 4:], each[..., :4]], -1) * rotary[1] for each in (q, k))
        attended = scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        y = self.post_norm(x)
        return x + self.down(silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, blocks=3):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers, self.norm = nn.ModuleList(LlamaBlock() for _ in range(blocks)), nn.RMSNorm(WIDTH)
        self.register_buffer("frequencies", 100.0 ** -(torch.arange(4) / 4), persistent=False)

    def forward(self, ids):
        angles = torch.arange(ids.shape[1])[:, None] * self.frequencies.repeat(2)
        x, seen = self.embed(ids), []
        for layer in self.layers:
            x = layer(x, rotary=(angles.cos().to(x), angles.sin().to(x)), seen=seen)
            assert len(seen) == len(set(seen))
        return self.norm(x) @ self.embed.weight.t()


def tokens(batches=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (2, 9 + i), generator=generator) for i in range(batches)]


def made(kind, seed=0, **given):
    torch.manual_seed(seed)
    return kind(**given).double().eval()
