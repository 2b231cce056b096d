"""Regression gate: ratios of this machine's present run, compared with those of the last accepted one.

calibration  work whose cost never changes, which other costs are divided by
queue        Redis' time and commands per operation of the queue
serving      processor time and commands per image and per step, of gateway, worker and Valkey
engines      the engine against the reference decoder, the head against plain matrix products
compare      the accepted ratios, and which of the present ones are worse
"""
