"""What a model of scenes can learn from besides its tokens' loss: a layout loss, and pretraining on relations."""
