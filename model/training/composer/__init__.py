"""Scenes composed on the training device: a CPU core pastes 640 a second, and a GPU trains on 15,000."""
