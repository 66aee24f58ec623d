"""What is shown of judgements: tables, pages, pictures, consoles."""
