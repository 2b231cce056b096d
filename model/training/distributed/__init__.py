"""Training on several devices: a step's losses as a module, its sharding, and a state for any number of ranks."""
