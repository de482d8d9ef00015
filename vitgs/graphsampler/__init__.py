"""ViT-GraphSampler: one shared utility picks frames and tokens under a budget, an image ViT runs on those alone, a graph and a memory model time.

Legend of shape suffixes: B batch, T frames, N tokens a frame, S kept nodes, E edges a node, G graph width, h heads, M memory slots, D width.
"""
