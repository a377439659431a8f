"""Data-free and condensed-data knowledge distillation as a Ray-distributed ablation and search system."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
