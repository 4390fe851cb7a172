"""What the notebooks measure for the ledger: one function per numerical claim of a paper."""
