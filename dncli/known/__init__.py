"""Other tasks of a detector whose queries are boxes with labels (Sec. 5.7.1): known objects and known labels."""
