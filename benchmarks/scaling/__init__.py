"""How far one Redis goes: a simulation of gateways, queue and workers, driven by measured service times.

measure     service times, and latencies to compare with, from two gateways and eight workers
model       what was measured, and the analysis of utilisation
simulation  the discrete-event simulation
sweeps      many workers, many arrivals, lost workers
figure      the SVGs of docs/scaling.md
measured.json   the service times that the simulation reads
"""
