"""The whole result as one HTML page that asks for no other file and needs no script."""

from condkd_ray.report.page.pages import PAGE, compare, write

__all__ = ["PAGE", "compare", "write"]
