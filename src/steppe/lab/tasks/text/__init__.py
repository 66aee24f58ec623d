"""Texts: tables and GLUE, encoders from the Hugging Face hub or a folder, and tasks for `steppe compare`."""
