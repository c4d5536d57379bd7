"""CUDA ops in one launch with a barrier of all blocks, or in one launch of each part."""

VARIANTS = ["1", "0"]  # of MODGRAD_COOPERATIVE


def is_at_once(emulator, op):
    begin = emulator.launches()
    op()
    return emulator.launches() - begin == 1
