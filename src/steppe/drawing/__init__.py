"""What is drawn alike everywhere: the style of figures, heatmaps, tables in Markdown."""
