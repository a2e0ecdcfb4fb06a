"""Models with closed forms, trained on data that are made up."""
