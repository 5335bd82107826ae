"""resd compare: several methods and seeds, one table."""
