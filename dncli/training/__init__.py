"""Training and evaluation: the loop, what it writes, and what it shows."""
