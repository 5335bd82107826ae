"""Parts of this library inside other trainers."""
