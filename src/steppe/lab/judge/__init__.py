"""What records say: means, intervals, verdicts."""
