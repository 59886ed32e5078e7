"""Kernels whose result for a row does not depend on the other rows of a pass: in Triton for CUDA, each with a twin in torch."""
