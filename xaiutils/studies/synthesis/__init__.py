"""Notebook 05: every explainer against every test."""
