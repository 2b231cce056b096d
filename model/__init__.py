"""The models: networks, diffusion, inference, training, evaluation and data."""
