"""Claims of the literature as experiments: specs, training, store, evidence, report, and the catalog of studies."""
