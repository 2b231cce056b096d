"""A borrowed GPU in two calls: is it right, how fast is it, and what follows from that?

`python -m benchmarks.gpu first`, `second` and `decide` (`__main__.py`) need only the repository and torch, triton,
safetensors, numpy and tqdm.

calls          the parts of both calls, their order and time limits
parts          isolated parts, each in its own process; records on disk as they come
check          parts that compare the device with definitions and with the CPU
bench          parts that measure speed
tuning         the sweep of tiles
training_leg   a leg of training through the real trainer
warm           compilation ahead, in many processes
decide         the path behind FLUID_KERNELS=auto, from the results
cases          models, engines and head loops with random weights; the shipped model
head           the head's loop as we run it and as others would write it
prompt_states  stored text-encoder states of a few prompts
prediction/    what a GPU should need, by count: docs/roofline.md
"""
