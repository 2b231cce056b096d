"""The paper's four systems, {random, raster} order × {continuous, discrete} tokens, compared at a small size.

    python -m benchmarks.four_systems run      train and score whatever is not there yet; again to go on after a kill
    python -m benchmarks.four_systems table    table, scaling fit and JSON, of what is there
    python -m benchmarks.four_systems grid     one image of each system for the same prompts and seeds

All systems have the same size, data and training time (model/recipes/compare.toml). The scaling curve has three sizes
of random order over continuous tokens, trained for as many steps as the middle one. `table` prints one JSON object as
its last line and saves it under benchmarks/results/.

runs         the stages, and how they resume
table        what is collected from their reports, and the paper's figures beside it
figure       the scaling curve
grid         the grid of images
"""
