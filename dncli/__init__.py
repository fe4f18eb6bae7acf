"""The dndetr command: presets, data, the training loop, evaluation and pictures, over the detectors in `models`."""

__version__ = "0.1.0"
