"""The weights of one rank: one block on its device, of which every tensor is a view, so that a file or a copy in host memory
fills it in one go."""

import itertools
import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ALIGNMENT = 256
CHUNK_BYTES = 64 * 1024 * 1024
READERS = 8
"""Threads that read the file. On an H200 host one reached 2 GiB/s from the page cache, eight 16 GiB/s."""


class Weights:
    """Tensors of `shapes`, by name, in one block of memory on `device`. Their values are not set at first."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._shapes, self._device, self._dtype = dict(shapes), device, dtype
        item = torch.empty(0, dtype=dtype).element_size()
        self._sizes = [math.prod(shape) * item for shape in self._shapes.values()]
        padded = (-(-size // ALIGNMENT) * ALIGNMENT for size in self._sizes)
        self._offsets = list(itertools.accumulate(padded, initial=0))
        self._block = torch.empty(self._offsets[-1], dtype=torch.uint8, device=device)
        self._host_copy: Tensor | None = None

    @property
    def size(self) -> int:
        """Return their size in bytes."""
        return int(self._offsets[-1])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as views of the block. They are void once the weights leave the device."""
        return {
            name: self._block[offset : offset + size].view(self._dtype).view(shape)
            for (name, shape), offset, size in zip(
                self._shapes.items(), self._offsets, self._sizes, strict=False
            )
        }

    def save(self, path: Path) -> None:
        """Write them to a file, which appears when it is complete."""
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            for start in range(0, self.size, CHUNK_BYTES):
                file.write(self._block[start : start + CHUNK_BYTES].cpu().numpy().tobytes())
        part.replace(path)

    def load(self, path: Path) -> bool:
        """Fill them from a file of `save`. Return False if there is none of this size."""
        if not path.exists() or path.stat().st_size != self.size:
            return False
        on_gpu = self._device.type == "cuda"

        def read(start: int) -> None:
            count = min(CHUNK_BYTES, self.size - start)
            staging = torch.empty(count, dtype=torch.uint8, pin_memory=on_gpu)
            done = 0
            while done < count:
                done += os.preadv(file, [staging.numpy()[done:].data], start + done)
            with torch.inference_mode():  # of this thread
                self._block[start : start + count].copy_(staging)

        file = os.open(path, os.O_RDONLY)
        try:
            with ThreadPoolExecutor(READERS) as readers:
                list(readers.map(read, range(0, self.size, CHUNK_BYTES)))
        finally:
            os.close(file)
        return True

    def leave_device(self) -> None:
        """Copy them to host memory and free them on a GPU; a CPU has nothing to free.

        The host copy is page-locked with cudaHostRegister, so that the weights return at the speed of the bus (torch's own
        pinned memory rounds up to a power of two), and is kept while awake: locking takes about 0.4 s per GiB.
        """
        if self._device.type != "cuda":
            return
        if self._host_copy is None:
            copy = torch.empty(self.size, dtype=torch.uint8)
            failed = torch.cuda.cudart().cudaHostRegister(copy.data_ptr(), self.size, 0)
            if int(failed):
                raise RuntimeError(
                    f"{self.size / 1024**3:.1f} GiB of host memory cannot be locked: error {failed}"
                )
            copy.copy_(self._block)
            self._host_copy = copy
        self._block = torch.empty(0, dtype=torch.uint8, device=self._device)
        torch.cuda.empty_cache()

    def return_to_device(self) -> None:
        """Undo `leave_device`. Raises torch.OutOfMemoryError if the GPU has no room for them."""
        if self._host_copy is not None and not self._block.numel():
            self._block = self._host_copy.to(self._device, non_blocking=True)
            torch.cuda.synchronize(self._device)
