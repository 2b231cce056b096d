"""Scenes composed on the training device: a GPU takes ten thousand a second where a CPU core pastes six hundred."""
