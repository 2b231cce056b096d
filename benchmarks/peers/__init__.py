"""The same images behind what a user would pick instead: FastAPI by hand, LitServe, Ray Serve, BentoML, FastAPI + arq.

servers/   one file per peer, each set up as its own documentation says for batching
sides      starts a side's processes, restarts those that exit, stops all
processes  processor time and memory of a side, all processes together
wrk        closed-loop and open-loop load by wrk (load.lua)
parts      throughput, latency, added latency and the shipped model
crash      requests lost when a worker process is killed under load
report     tables and plot
pages      figures of a saved run in docs/benchmarks.md and README.md
"""
