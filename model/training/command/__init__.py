"""What the commands of all trainers share: flags, and what they say where a machine lacks something."""
