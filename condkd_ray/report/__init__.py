"""Records of an experiment, and the tables, figures and event files made from them."""
