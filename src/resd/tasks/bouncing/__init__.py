"""BouncingSim."""
