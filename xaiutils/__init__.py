"""Helpers behind the notebooks: one engine, four papers on local explanations."""
