"""Measurements on a GPU: check compares its results with a CPU's, bench measures speed, roofline predicts it.

check and bench need only the repository and torch, triton, safetensors, numpy and tqdm.

parts          time-limited parts, each in its own process
cases          models, engines and head loops with random weights; the shipped model
head           the head's loop as we run it and as others would write it
prompt_states  stored text-encoder states of a few prompts
"""
