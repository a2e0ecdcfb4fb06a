"""The best decay against batch, data and width."""
