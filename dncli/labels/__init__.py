"""Labels beside detection: vectors of class names, and a classifier that says which classes an image has."""
