"""The library that build.py makes, loaded: its ops, and what it lets a test choose."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from modgrad.backends.protocol import SCHEMAS
from modgrad.backends.retained import RETAINED_SCHEMAS


class Emulator:
    """``ops`` takes CPU tensors; modgrad's own CPU kernels stay as they are."""

    def __init__(self, library: Path) -> None:
        self.definitions = torch.library.Library("modgrad_emulated", "DEF")
        for op, schema in (SCHEMAS | RETAINED_SCHEMAS).items():
            self.definitions.define(op + schema)
        torch.ops.load_library(library)
        self.ops = torch.ops.modgrad_emulated
        self.library = ctypes.CDLL(library)
        self.sources = library.parent / "csrc" / "cuda"

    def seed(self, number: int) -> None:
        """Choose the schedule of all kernels to come."""
        self.library.emulator_seed(number)

    def launches(self) -> int:
        """How many kernels were launched so far."""
        return int(self.library.emulator_launches())

    @contextmanager
    def without_cooperation(self) -> Iterator[None]:
        """A launch with a barrier of all blocks fails."""
        self.library.emulator_refuse_cooperation(True)
        try:
            yield
        finally:
            self.library.emulator_refuse_cooperation(False)

    @contextmanager
    def resident(self, blocks: int) -> Iterator[None]:
        """So many blocks of a cooperative launch, at most, instead of 3."""
        self.library.emulator_resident_blocks(blocks)
        try:
            yield
        finally:
            self.library.emulator_resident_blocks(3)

    @contextmanager
    def without_barrier(self, line: int, threads: int) -> Iterator[None]:
        """The first ``threads`` of its threads pass the barrier in ``line`` of its file."""
        self.library.emulator_skip_barrier(line, threads)
        try:
            yield
        finally:
            self.library.emulator_skip_barrier(0, 0)
