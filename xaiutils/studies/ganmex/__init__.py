"""Notebook 04: baselines from a GAN for one class against another."""
