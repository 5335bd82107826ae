"""The loop: one run, from stream to checkpoint."""
