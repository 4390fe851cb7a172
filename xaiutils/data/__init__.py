"""What is explained: files fetched by hash, loaders, small problems with a known truth."""
