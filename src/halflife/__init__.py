"""halflife: prove, choose, schedule, watch and study weight decay in PyTorch."""
