"""What is made of finished runs: comparisons, tables, pictures."""
