"""Notebook 03: fidelity curves and what the hiding itself costs."""
