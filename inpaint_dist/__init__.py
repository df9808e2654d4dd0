"""Distributed training of GANs that fill holes in photos."""

__version__ = "0.1.0"
