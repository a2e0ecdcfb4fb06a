"""Language models trained on text: corpora, tokens, models, and the loop over them."""
