"""How the notebooks run and report: runner, provenance, ledger, figures, web pages."""
