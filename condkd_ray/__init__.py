"""Data-free and condensed-data knowledge distillation as a Ray-distributed ablation and search system."""

__version__ = "0.1.0"
