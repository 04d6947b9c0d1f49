"""One module an experiment of the paper."""
