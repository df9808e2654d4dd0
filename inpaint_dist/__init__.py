"""Distributed training of GANs that fill holes in photos."""

import os

__version__ = "0.1.0"

STARTED_BY = os.getppid()
"""The process that started this one, asked before the imports that take seconds: it may be gone after them."""
