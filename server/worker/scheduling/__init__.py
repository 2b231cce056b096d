"""Which images get the rows of an engine: plain Python without engine, Redis or a clock."""
