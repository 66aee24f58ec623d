"""What is kept: a record per finished trial, files that are whole or absent, databases of sweeps."""
