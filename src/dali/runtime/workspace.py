"""The buffers that every layer's step works in, kept from step to step: to make, adopt and release them anew would take a good
part of its host time, and host memory that stays can be page-locked."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.devices import Buffer, Device

REMEMBERED = 1024  # buffers: one a name and number of rows


class Workspace:
    """Grows as steps do. Contents are undefined: whoever takes a buffer writes it before reading it, and nobody keeps one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self._buffers: dict[tuple[str, int], Buffer] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype, place: torch.device) -> Buffer:
        """[rows, columns] on `place`; the memory of a `name` is always the same, until more rows are asked for."""
        buffer = self._buffers.get((name, rows))
        if buffer is None or buffer.tensor.dtype != dtype:
            if len(self._buffers) == REMEMBERED:
                self._buffers.clear()
            buffer = self._buffers[name, rows] = self._device.adopt(
                self._memory(name, rows, columns, dtype, place)[:rows]
            )
        return buffer

    def _memory(self, name: str, rows: int, columns: int, dtype: torch.dtype, place: torch.device) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None or len(tensor) < rows or tensor.dtype != dtype:
            self._buffers = {key: buffer for key, buffer in self._buffers.items() if key[0] != name}
            tensor = self._tensors[name] = torch.empty(
                1 << (rows - 1).bit_length(), columns, dtype=dtype, device=place
            )
            if place.type == "cpu":
                self._device.pin(tensor)
        return tensor
