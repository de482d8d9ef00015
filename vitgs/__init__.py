"""ViT-GraphSampler Bench: the accuracy-efficiency trade-off of video classification, measured so that it can be trusted."""

__version__ = "0.1.0"
