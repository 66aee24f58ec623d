"""Who carries trials out."""
