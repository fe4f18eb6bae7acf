"""The deformable-attention operator in C++ and CUDA, which dndetr.models.native builds on its first use."""
