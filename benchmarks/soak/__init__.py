"""Soak test: the service at a steady load for hours, and whether anything grows.

traffic   the steady load, and a little of every other kind of request
samples   memory, descriptors, threads and keys of every process, read every few seconds into a file
trends    slope of a series with its confidence interval
report    verdict for every figure, and the plot
"""
