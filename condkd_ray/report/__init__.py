"""The report of an experiment or a search, made from its records: tables, figures, pages and TensorBoard files."""
