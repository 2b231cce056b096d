"""The process that generates: read loop, then intake, scheduler, completion; main starts it."""
