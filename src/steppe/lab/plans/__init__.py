"""What is to be tried: options, the rows of a comparison, the settings of a sweep."""
