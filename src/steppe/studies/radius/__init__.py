"""In which units a good radius stays the same from task to task."""
