"""On a GPU: check compares its images with the CPU's, bench measures, roofline predicts."""
