"""Experiments: the paper's evaluation and comparisons of tuned optimizers, from the plan to the report."""
