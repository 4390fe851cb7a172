"""The notebooks, figures and ledger as a static web site (`make site`)."""
