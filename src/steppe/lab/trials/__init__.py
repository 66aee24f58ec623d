"""One training: everything that changes its numbers, and carrying it out."""
