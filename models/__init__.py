"""Detectors with query denoising: the denoising module, the hosts and their losses; torch, torchvision and scipy only."""
