"""Tables, figures, pages and event files, made from the records of an experiment."""
