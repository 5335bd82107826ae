"""How the lab's base model was made."""
