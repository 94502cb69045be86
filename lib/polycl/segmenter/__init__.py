"""The 2D segmenter: its network, inference on a volume, fine-tuning."""

from polycl.segmenter.inference import Segmenter

__all__ = ["Segmenter"]
