"""Tasks of published experiments, to be compared on one's own machine. Nothing is imported before it is asked for."""
