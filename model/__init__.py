"""The network, its mathematics, its data and its training."""
