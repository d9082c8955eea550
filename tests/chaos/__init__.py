"""Kill trials: a run is struck at a random point, run again, and must end in the same bytes."""
