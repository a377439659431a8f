"""The distillation methods: one folder per family."""
