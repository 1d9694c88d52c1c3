"""The mathematics of DiffusionBlocks (arXiv 2506.14202). Importing this package does not import torch."""
