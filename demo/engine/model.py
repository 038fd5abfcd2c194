"""The model: a decoder-only transformer (RMS norm, rotary positions, gated MLP) with a KV cache, on plain tensors.

A request's numbers must not depend on what else is in the batch, to the bit, or tests and drills could not compare
outputs. So every matrix product has a shape that other requests cannot change: decode rows go through in tiles of
`TILE_ROWS` (the last one padded), a prompt chunk goes through alone, and attention runs for each request over its own
keys. With 1 or 2 ranks the all-reduce keeps this (a sum of two commutes); from 3 ranks on the order of a ring's sum depends
on where a row lies, and outputs agree within rounding only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from demo.engine.options import Options, StartError
from demo.engine.step_plan import PrefillChunk, StepPlan
from demo.engine.tensor_parallel import Communicator

TILE_ROWS = 8
"""Rows of one decode matrix product. Measured on one AVX-512 core with the default model: 0.9 ms of products a step for 8
rows against 0.3 ms for 1, so a batch of 8 costs what 3 single requests would."""

ROPE_BASE = 10_000.0
EPSILON = 1e-6


@dataclass(slots=True)
class Layer:
    """One layer's shard. `qkv` is [3 * local heads * head size, hidden], `gate_up` [2 * local width, hidden]."""

    attention_norm: Tensor
    qkv: Tensor
    attention_output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class CacheError(StartError):
    """The KV cache does not fit. The message gives the sizes."""


def cache_slots(options: Options, *, bytes_per_value: int) -> int:
    """How many requests of full length the KV cache holds: `--max-num-seqs`, or what `--gpu-memory-gib` has room for.

    Raises CacheError when there is no room for one.
    """
    if options.gpu_memory_gib is None:
        return options.max_num_seqs
    slot = 2 * options.num_layers * options.hidden_size * options.max_model_len * bytes_per_value
    slot //= options.tensor_parallel_size
    slots = int(options.gpu_memory_gib * 2**30 // slot)
    if slots < 1:
        raise CacheError(
            f"--gpu-memory-gib {options.gpu_memory_gib:g} holds no request of --max-model-len {options.max_model_len}: one "
            f"takes {slot / 2**30:.3f} GiB a rank"
        )
    return slots


class Transformer:
    """One rank's shard of the model and of its cache."""

    def __init__(self, options: Options, weights: dict[str, Tensor], communicator: Communicator) -> None:
        self._communicator = communicator
        self._heads = options.num_heads // options.tensor_parallel_size
        self._head_size = options.head_size
        self._embedding = weights["embedding"]
        self._head = weights["head"]
        self._final_norm = weights["final_norm"]
        self._layers = [_layer(weights, f"layers.{number}.") for number in range(options.num_layers)]
        device, dtype = self._embedding.device, self._embedding.dtype
        self._device = device
        self.slots = cache_slots(options, bytes_per_value=self._embedding.element_size())
        self._cache = torch.empty(
            (options.num_layers, 2, self.slots, self._heads, options.max_model_len, options.head_size),
            device=device,
            dtype=dtype,
        )
        half = torch.arange(0, options.head_size, 2, dtype=torch.float32) / options.head_size
        angles = torch.arange(options.max_model_len, dtype=torch.float32)[:, None] * ROPE_BASE**-half
        self._cosine = angles.cos().to(device=device, dtype=dtype)
        self._sine = angles.sin().to(device=device, dtype=dtype)

    def forward(self, plan: StepPlan) -> Tensor | None:
        """Compute one step. On rank 0 gives float32 logits [rows, vocabulary]: the decode rows in order, then the last token
        of each prompt that is complete; None when there are none, and on other ranks."""
        rows = [self._decode(plan)] if plan.decode else []
        for chunk in plan.prefill:
            hidden = self._prefill(chunk)
            if chunk.last:
                rows.append(hidden[-1:])
        if not rows or self._communicator.rank:
            return None
        hidden = torch.cat(rows)
        count = hidden.shape[0]
        hidden = functional.pad(hidden, (0, 0, 0, -count % TILE_ROWS))
        return _tiles(self._norm(hidden, self._final_norm), self._head)[:count].float()

    def _decode(self, plan: StepPlan) -> Tensor:
        """One token of each running request; gives hidden states [rows, hidden]."""
        count = len(plan.decode)
        spare = -count % TILE_ROWS
        columns = [[row.token, row.position, row.slot] for row in plan.decode] + [[0, 0, 0]] * spare
        table = torch.tensor(columns, dtype=torch.int64).to(self._device, non_blocking=True)
        tokens, positions = table[:, 0], table[:, 1]
        slots, places = table[:count, 2], table[:count, 1]
        cosine, sine = self._cosine[positions][:, None], self._sine[positions][:, None]
        stream = self._embedding[tokens]
        attended = stream.new_zeros(count + spare, self._heads * self._head_size)
        for number, layer in enumerate(self._layers):
            keys, values = self._cache[number]
            qkv = _tiles(self._norm(stream, layer.attention_norm), layer.qkv)
            qkv = qkv.view(count + spare, 3, self._heads, self._head_size)
            query, key = (
                _rotate(qkv[:, 0], cosine, sine),
                _rotate(qkv[:count, 1], cosine[:count], sine[:count]),
            )
            keys[slots, :, places] = key
            values[slots, :, places] = qkv[:count, 2]
            for index, row in enumerate(plan.decode):
                length = row.position + 1
                attended[index] = functional.scaled_dot_product_attention(
                    query[index][None, :, None],
                    keys[row.slot, :, :length][None],
                    values[row.slot, :, :length][None],
                ).view(-1)
            stream = stream + self._reduced(_tiles(attended, layer.attention_output))
            gated = _gate(_tiles(self._norm(stream, layer.mlp_norm), layer.gate_up))
            stream = stream + self._reduced(_tiles(gated, layer.down))
        return stream[:count]

    def _prefill(self, chunk: PrefillChunk) -> Tensor:
        """A piece of one prompt; gives hidden states [tokens, hidden]."""
        count, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
        tokens = torch.tensor(chunk.tokens, dtype=torch.int64).to(self._device, non_blocking=True)
        cosine, sine = self._cosine[chunk.start : end, None], self._sine[chunk.start : end, None]
        mask = None
        if chunk.start:
            mask = torch.ones(count, end, dtype=torch.bool, device=self._device).tril(chunk.start)
        stream = self._embedding[tokens]
        for number, layer in enumerate(self._layers):
            keys, values = self._cache[number, :, chunk.slot]
            qkv = functional.linear(self._norm(stream, layer.attention_norm), layer.qkv)
            qkv = qkv.view(count, 3, self._heads, self._head_size)
            keys[:, chunk.start : end] = _rotate(qkv[:, 1], cosine, sine).transpose(0, 1)
            values[:, chunk.start : end] = qkv[:, 2].transpose(0, 1)
            attended = functional.scaled_dot_product_attention(
                _rotate(qkv[:, 0], cosine, sine).transpose(0, 1)[None],
                keys[None, :, :end],
                values[None, :, :end],
                attn_mask=mask,
                is_causal=mask is None,
            )
            attended = attended[0].transpose(0, 1).reshape(count, -1)
            stream = stream + self._reduced(functional.linear(attended, layer.attention_output))
            gated = _gate(functional.linear(self._norm(stream, layer.mlp_norm), layer.gate_up))
            stream = stream + self._reduced(functional.linear(gated, layer.down))
        return stream

    def _reduced(self, partial: Tensor) -> Tensor:
        self._communicator.all_reduce(partial)
        return partial

    def _norm(self, stream: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(stream, (stream.shape[-1],), weight, EPSILON)


def _layer(weights: dict[str, Tensor], prefix: str) -> Layer:
    def joined(*names: str) -> Tensor:
        return torch.cat([weights[prefix + name] for name in names])

    return Layer(
        attention_norm=weights[prefix + "attention_norm"],
        qkv=joined("query", "key", "value"),
        attention_output=weights[prefix + "attention_output"],
        mlp_norm=weights[prefix + "mlp_norm"],
        gate_up=joined("gate", "up"),
        down=weights[prefix + "down"],
    )


def _tiles(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [n * TILE_ROWS, in] times weight [out, in]^T, each tile in a product of its own."""
    if rows.shape[0] == TILE_ROWS:
        return functional.linear(rows, weight)
    return torch.cat([functional.linear(tile, weight) for tile in rows.split(TILE_ROWS)])


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions over heads [rows, heads, size]; the two halves of a head are the two coordinates."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _gate(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
