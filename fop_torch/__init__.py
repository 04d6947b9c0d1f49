"""FOP as a PyTorch optimizer, and the experiments of the paper."""
