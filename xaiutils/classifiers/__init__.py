"""Frozen real classifiers; inputs in natural units, preprocessing inside."""
