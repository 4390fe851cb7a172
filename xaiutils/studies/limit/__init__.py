"""Notebook 02: what LIME converges to, how fast, and beside integrated gradients."""
