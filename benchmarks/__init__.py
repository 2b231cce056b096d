"""Benchmarks. Each prints a table and, as its last line, one JSON object; results/ has committed runs.

`python -m benchmarks` (`make bench`) runs exact, head, batching, served, growth and part of sampling.

exact        exact sampling against the method of the released code
head         GFLOP/s of the diffusion head against the matmul peak
batching     continuous against static batching
served       the service over HTTP against the bare engine
interactive  latencies that a single user notices
sampling     seconds per image by quality preset and batch
growth       cost by rows, tokens and parameters
fast         quality and time of faster decoding settings
edits        visibility of the seam of an edit
chaos/       faults under load, then an audit of every job
load/        cost of the service around the engine
peers/       the service against other servers, loaded from outside
four_systems/ the systems of the paper, trained and compared at a small size
imported/    imported families against the code that they come from
options/     what settings of the service cost
gpu/         correctness and speed on a GPU
machine      machine description, saved results, shared command line
"""
