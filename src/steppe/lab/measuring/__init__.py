"""The sharpness of what comparisons have trained."""
