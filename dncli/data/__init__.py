"""Data: COCO files checked and read, images decoded, augmented and batched, and a generated dataset to begin with."""
