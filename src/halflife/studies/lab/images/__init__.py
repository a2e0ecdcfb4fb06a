"""Image classifiers: data, models, the loop, what is read along a run."""
