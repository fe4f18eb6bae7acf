"""Detectors with query denoising: the denoising module, the hosts and their losses. Needs torch, torchvision and scipy only."""
