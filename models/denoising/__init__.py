"""Query denoising (Sec. 4): the noise, the layout of the queries with its attention mask, and the queries themselves.

The names that a detector takes from here are all in this place (docs/use-as-library.md).
"""

from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.noise import NoiseConfig, NoisedTargets, noise_targets
from dndetr.models.denoising.queries import Known, LabelEmbedding, Queries, assemble

__all__ = ["Known", "LabelEmbedding", "NoiseConfig", "NoisedTargets", "Queries", "QueryLayout", "assemble", "noise_targets"]
