"""Notebook 01: what LIME finds of an attack on a singing detector."""
