"""One file per group of routes; images and jobs first."""
