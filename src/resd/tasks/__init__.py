"""Tasks: environments that score a response and say in words what went wrong. No torch."""
