"""Small data sets that show modality competition."""

from modgrad.datasets.av_digits import AVDigits, av_digits

__all__ = ["AVDigits", "av_digits"]
