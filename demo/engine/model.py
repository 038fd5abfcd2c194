"""The model: a decoder-only transformer (RMS norm, rotary positions, gated MLP) with a KV cache and seeded weights.

A request's numbers must not depend on what else is in the batch, to the bit, or tests and drills could not compare
outputs. So every matrix product has a shape that other requests cannot change: decode rows pass through in tiles of
`TILE_ROWS` (the last one padded), a prompt chunk passes through alone, and attention runs for each request over its own
keys. With 1 or 2 ranks the all-reduce keeps this (a sum of two commutes); from 3 ranks on the order of a ring's sum depends
on a row's place, and outputs agree within rounding only.

Attention heads and the MLP are split over the ranks as in Megatron-LM: the first matrix of each block by output features,
the second by input features, so that one all-reduce ends each block.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from demo.engine.communicator import Communicator
from demo.engine.options import Options
from demo.engine.request import DecodeRow, PrefillChunk, StepPlan
from demo.engine.tokenizer import END_OF_TEXT, PRINTABLE, VOCABULARY
from demo.engine.weights import Weights

TILE_ROWS = 8
"""Rows of one decode matrix product. Measured on one AVX-512 core with the default model: 0.9 ms of products a step for 8
rows against 0.3 ms for 1, so a batch of 8 costs what 3 single requests would."""

ROPE_BASE = 10_000.0
EPSILON = 1e-6

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True)
class Layer:
    """One layer's shard. `qkv` is [3 * local heads * head size, hidden], `gate_up` [2 * local width, hidden]. Norms have no
    weights: in a random model they would be 1."""

    qkv: Tensor
    attention_output: Tensor
    gate_up: Tensor
    down: Tensor


class Transformer:
    """One rank's shard of the model and of its cache, `options.max_num_seqs` slots of `options.max_model_len` tokens."""

    def __init__(
        self, options: Options, communicator: Communicator, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._communicator = communicator
        self._options, self._device, self._dtype = options, device, dtype
        self._heads = options.num_heads // options.tensor_parallel_size
        self._head_size = options.head_size
        hidden, wide = options.hidden_size, options.intermediate_size
        self._load(hidden, wide)
        cache_shape = (
            options.num_layers, 2, options.max_num_seqs, self._heads, options.max_model_len, self._head_size,
        )  # fmt: skip
        self._cache_shape = cache_shape
        self._cache = self._new_cache()
        half = torch.arange(0, options.head_size, 2, dtype=torch.float32) / options.head_size
        angles = torch.arange(options.max_model_len, dtype=torch.float32)[:, None] * ROPE_BASE**-half
        self._cosine = angles.cos().to(device=device, dtype=dtype)
        self._sine = angles.sin().to(device=device, dtype=dtype)

    def _load(self, hidden: int, wide: int) -> None:
        """Set the weights: from the file of this rank if there is one, else drawn, and written to the file."""
        last = 1 / math.sqrt(2 * self._options.num_layers)  # the residual stream must not grow with depth
        # The scale 2 of the head makes a clear greedy choice in spite of rounding.
        drawn: dict[str, tuple[tuple[int, ...], int | None, float]] = {
            "embedding": ((VOCABULARY, hidden), None, math.sqrt(hidden)),
            "head": ((VOCABULARY, hidden), None, 2),
        }
        for number in range(self._options.num_layers):
            drawn |= {
                f"{number}.qkv": ((3, hidden, hidden), 1, 1),
                f"{number}.output": ((hidden, hidden), 1, last),
                f"{number}.gate_up": ((2, wide, hidden), 1, 1),
                f"{number}.down": ((hidden, wide), 1, last),
            }
        world, rank = self._options.tensor_parallel_size, self._communicator.rank
        shapes = {name: _shard(shape, split, world) for name, (shape, split, _) in drawn.items()}
        self._weights = Weights(shapes, self._device, self._dtype)
        folder = self._options.weights_dir
        path = None if folder is None else folder / f"rank{rank}of{world}.weights"
        if path is None or not self._weights.load(path):
            tensors = self._weights.tensors()
            for name, (shape, split, scale) in drawn.items():
                tensors[name].copy_(self._draw(name, *shape, split=split, scale=scale))
            if path is not None:
                self._weights.save(path)
        self._bind()

    def _bind(self) -> None:
        """Take the tensors of the weights where they are now."""
        tensors = self._weights.tensors()
        self._embedding, self._head = tensors["embedding"], tensors["head"]
        self._layers = [
            Layer(
                qkv=tensors[f"{number}.qkv"].flatten(0, 1),
                attention_output=tensors[f"{number}.output"],
                gate_up=tensors[f"{number}.gate_up"].flatten(0, 1),
                down=tensors[f"{number}.down"],
            )
            for number in range(self._options.num_layers)
        ]

    def _new_cache(self) -> Tensor:
        return torch.empty(self._cache_shape, device=self._device, dtype=self._dtype)

    def sleep(self) -> None:
        """Move the weights to host memory and free the cache."""
        self._layers = []
        self._embedding = self._head = self._cache = torch.empty(0, device=self._device, dtype=self._dtype)
        self._weights.leave_device()

    def wake_up(self) -> None:
        """Move the weights back and allocate the cache. Raises torch.OutOfMemoryError if the device has no room for them."""
        self._weights.return_to_device()
        self._bind()
        self._cache = self._new_cache()

    def _draw(self, name: str, *shape: int, split: int | None = None, scale: float = 1) -> Tensor:
        """Draw a tensor, and return this rank's part of it along the dimension `split`.

        Each tensor has its own generator, so its values depend on nothing but the seed, its name and its shape; the two are
        hashed together, since a CPU generator reads only 32 bits of its seed. The scale keeps activations near 1.
        """
        generator = torch.Generator(device=self._device)
        generator.manual_seed(zlib.crc32(f"{self._options.seed} {name}".encode()))
        full = torch.randn(shape, generator=generator, device=self._device).mul_(scale / math.sqrt(shape[-1]))
        if split is not None:
            full = full.chunk(self._options.tensor_parallel_size, dim=split)[self._communicator.rank]
        return full

    def forward(self, plan: StepPlan) -> Tensor | None:
        """Compute one step. Return float32 logits [rows, vocabulary] on rank 0: the decode rows in order, then for each
        chunk all its tokens (`all_logits`) or the last token of a complete prompt; None when there are none, and on other
        ranks."""
        rows = [self._decode(plan.decode)] if plan.decode else []
        for chunk in plan.prefill:
            hidden = self._prefill(chunk)
            if chunk.all_logits:
                rows.append(hidden)
            elif chunk.last:
                rows.append(hidden[-1:])
        if not rows or self._communicator.rank:
            return None
        hidden = torch.cat(rows)
        count = hidden.shape[0]
        hidden = functional.pad(hidden, (0, 0, 0, -count % TILE_ROWS))
        return _tiles(_norm(hidden), self._head)[:count].float()

    def _decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Compute one token of each decoding request. Return hidden states [rows, hidden]."""
        count, padded = len(rows), -(-len(rows) // TILE_ROWS) * TILE_ROWS
        columns = [[row.token, row.position, row.slot] for row in rows] + [[0, 0, 0]] * (padded - count)
        table = torch.tensor(columns, dtype=torch.int64).to(self._device, non_blocking=True)
        tokens, positions, slots = table.unbind(dim=1)
        cosine, sine = self._cosine[positions][:, None], self._sine[positions][:, None]
        attended = torch.zeros(padded, self._heads * self._head_size, device=self._device, dtype=self._dtype)

        def attend(number: int, qkv: Tensor) -> Tensor:
            keys, values = self._cache[number]
            query, key = _rotate(qkv[:, 0], cosine, sine), _rotate(qkv[:, 1], cosine, sine)
            keys[slots[:count], :, positions[:count]] = key[:count]
            values[slots[:count], :, positions[:count]] = qkv[:count, 2]
            for index, row in enumerate(rows):
                length = row.position + 1
                attended[index] = functional.scaled_dot_product_attention(
                    query[index][None, :, None],
                    keys[row.slot, :, :length][None],
                    values[row.slot, :, :length][None],
                ).view(-1)
            return attended

        return self._run_layers(self._embedding[tokens], _tiles, attend)[:count]

    def _prefill(self, chunk: PrefillChunk) -> Tensor:
        """Compute a piece of one prompt. Return hidden states [tokens, hidden]."""
        count, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
        tokens = torch.tensor(chunk.tokens, dtype=torch.int64).to(self._device, non_blocking=True)
        cosine, sine = self._cosine[chunk.start : end, None], self._sine[chunk.start : end, None]
        mask = None
        if chunk.start:
            mask = torch.ones(count, end, dtype=torch.bool, device=self._device).tril(chunk.start)

        def attend(number: int, qkv: Tensor) -> Tensor:
            keys, values = self._cache[number, :, chunk.slot]
            keys[:, chunk.start : end] = _rotate(qkv[:, 1], cosine, sine).transpose(0, 1)
            values[:, chunk.start : end] = qkv[:, 2].transpose(0, 1)
            attended = functional.scaled_dot_product_attention(
                _rotate(qkv[:, 0], cosine, sine).transpose(0, 1)[None],
                keys[None, :, :end],
                values[None, :, :end],
                attn_mask=mask,
                is_causal=mask is None,
            )
            return attended[0].transpose(0, 1).reshape(count, -1)

        return self._run_layers(self._embedding[tokens], functional.linear, attend)

    def _run_layers(
        self, stream: Tensor, product: Product, attend: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """Pass hidden states [rows, hidden] through all layers. `attend(layer, qkv)` takes [rows, 3, heads, head size]."""
        for number, layer in enumerate(self._layers):
            qkv = product(_norm(stream), layer.qkv).view(-1, 3, self._heads, self._head_size)
            stream = stream + self._reduced(product(attend(number, qkv), layer.attention_output))
            gate, up = product(_norm(stream), layer.gate_up).chunk(2, dim=-1)
            stream = stream + self._reduced(product(functional.silu(gate) * up, layer.down))
        return stream

    def _reduced(self, partial: Tensor) -> Tensor:
        self._communicator.all_reduce(partial)
        return partial


def _shard(shape: tuple[int, ...], split: int | None, world: int) -> tuple[int, ...]:
    """Return the shape of one rank's part."""
    return tuple(size // world if axis == split else size for axis, size in enumerate(shape))


def _norm(stream: Tensor) -> Tensor:
    return functional.rms_norm(stream, (stream.shape[-1],), None, EPSILON)


def _tiles(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows [n * TILE_ROWS, in] with weight [out, in] transposed, each tile in a product of its own."""
    if rows.shape[0] == TILE_ROWS:
        return functional.linear(rows, weight)
    return torch.cat([functional.linear(tile, weight) for tile in rows.split(TILE_ROWS)])


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions to heads [rows, heads, size]; the two halves of a head are the two coordinates."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def pick_tokens(logits: Tensor, may_end: Sequence[bool]) -> list[int]:
    """Return the most likely printable token of each row of logits [rows, vocabulary]; the end of the text only where
    `may_end` allows it."""
    allowed = torch.full_like(logits, -torch.inf)
    allowed[:, list(PRINTABLE)] = 0.0
    allowed[[not may for may in may_end], END_OF_TEXT] = -torch.inf
    tokens: list[int] = (logits + allowed).argmax(dim=-1).tolist()
    return tokens


def logprobs(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the log-probability of a token and the `count` most likely ones, from the model's own logits [vocabulary]."""
    values = torch.log_softmax(logits, dim=-1)
    top = values.topk(count)
    return float(values[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
