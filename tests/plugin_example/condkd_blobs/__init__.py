"""Plug-ins for condkd_ray, one a file, as a pattern for your own."""
