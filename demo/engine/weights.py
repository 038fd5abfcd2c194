"""The model's weights: drawn from a seed or read from a state_dict file, and cut into one rank's shard.

Attention heads and the MLP are split over the ranks as in Megatron-LM: the first matrix of each block by columns (output
features), the second by rows (input features), so that one all-reduce ends each block.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from demo.engine.options import VOCABULARY, Options, StartError


class WeightsError(StartError):
    """A weights file does not fit. The message names the file, the tensor, and what was expected."""


def shapes(options: Options) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the name and full shape of every tensor of the model, in order."""
    hidden, wide = options.hidden_size, options.intermediate_size
    yield "embedding", (VOCABULARY, hidden)
    for layer in range(options.num_layers):
        prefix = f"layers.{layer}."
        yield prefix + "attention_norm", (hidden,)
        yield prefix + "query", (hidden, hidden)
        yield prefix + "key", (hidden, hidden)
        yield prefix + "value", (hidden, hidden)
        yield prefix + "attention_output", (hidden, hidden)
        yield prefix + "mlp_norm", (hidden,)
        yield prefix + "gate", (wide, hidden)
        yield prefix + "up", (wide, hidden)
        yield prefix + "down", (hidden, wide)
    yield "final_norm", (hidden,)
    yield "head", (VOCABULARY, hidden)


def parameters(options: Options) -> int:
    """Number of parameters of the whole model."""
    return sum(math.prod(shape) for _, shape in shapes(options))


def _draw(name: str, shape: tuple[int, ...], options: Options, device: torch.device) -> Tensor:
    """Draw one full tensor in float32. Each has a generator of its own, so its values depend on nothing but the seed, its
    name and its shape; the two are hashed together, since a CPU generator reads only 32 bits of its seed. Scales keep
    activations near 1 (fan-in), and the residual stream from growing with depth."""
    if name.endswith("norm"):
        return torch.ones(shape, device=device)
    generator = torch.Generator(device=device)
    generator.manual_seed(zlib.crc32(f"{options.seed} {name}".encode()))
    scale = 1.0 if name == "embedding" else 1 / math.sqrt(shape[1])
    if name.endswith(("attention_output", "down")):
        scale /= math.sqrt(2 * options.num_layers)
    if name == "head":
        scale *= 2  # logits spread enough that the greedy choice has a margin over rounding
    return torch.randn(shape, generator=generator, device=device).mul_(scale)


def shard(name: str, full: Tensor, rank: int, world: int) -> Tensor:
    """Cut one rank's part out of a full tensor; what is not split (norms, embedding, head) is given whole."""
    kind = name.rpartition(".")[2]
    if kind in {"query", "key", "value", "gate", "up"}:
        return full.chunk(world, dim=0)[rank]
    if kind in {"attention_output", "down"}:
        return full.chunk(world, dim=1)[rank]
    return full


def _read(path: Path, options: Options) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise WeightsError(f"--weights {path}: no such file") from error
    except Exception as error:
        raise WeightsError(
            f"--weights {path}: not a state_dict that torch can load safely ({error})"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"--weights {path}: holds a {type(state).__name__}, not a state_dict")
    for name, shape in shapes(options):
        found = state.get(name)
        if not isinstance(found, Tensor):
            raise WeightsError(f"--weights {path}: the tensor {name!r} is missing")
        if tuple(found.shape) != shape:
            raise WeightsError(
                f"--weights {path}: {name!r} has the shape {tuple(found.shape)}, but the options ask for {shape}: "
                "give the --hidden-size, --num-layers and --num-heads that it was saved with"
            )
    return state


def full_state(options: Options, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Give every full tensor, one after the other. Raises WeightsError for a file that does not fit."""
    if options.weights is not None:
        state = _read(options.weights, options)
        for name, _ in shapes(options):
            yield name, state[name]
        return
    for name, shape in shapes(options):
        yield name, _draw(name, shape, options, device)


def load_shard(options: Options, *, rank: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Give one rank's shard by name, on its device. One full tensor exists at a time, so memory peaks near the shard."""
    return {
        name: shard(name, full, rank, options.tensor_parallel_size)
        .to(device=device, dtype=dtype)
        .clone(memory_format=torch.contiguous_format)
        for name, full in full_state(options, device)
    }


def save(options: Options, path: Path) -> int:
    """Write the full seeded weights as a state_dict; gives the number of parameters."""
    torch.save(dict(full_state(options, torch.device("cpu"))), path)
    return parameters(options)
