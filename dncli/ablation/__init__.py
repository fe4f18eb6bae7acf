"""Ablation studies: rows of settings over one preset, each trained with several seeds, beside the paper's numbers."""
