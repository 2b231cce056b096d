"""Training: `python -m model.training` and its parts.

train                 command line; recipe: the TOML file that describes a run
run                   a run's state: model, optimiser, clock, data; made, saved, resumed
loop                  the training loop: loss, step, budget
outputs               sample sheets, the averaged checkpoint
feeds                 batches of tokens and captions; captions: text states, encoded once
composer              scenes composed on the training device, by a GPU that needs no loaders
auxiliary             layout loss and relation pretraining, which a model of scenes can learn from besides
optimizer             the optimisers that a recipe can name
trainer               clock, learning rate, moving average, resumable state: shared by all trainers
command               flags that trainers share, and what they say where a machine lacks something
train_tokenizer       trains the image tokenizer, which must exist before a model is trained
few_steps             distils a flow head into one that needs few diffusion steps
guidance_distillation puts guidance into a model's weights: one pass a step instead of two
portable_run          packs a run, to train on another machine
"""
