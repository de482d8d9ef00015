"""The shared vision transformer and its parts: every block maps `Tokens -> Tokens`, so that systems are composed, never patched.

Legend of shape suffixes: B batch, T frames, C channels, H W pixels, N tokens, D width, h heads, d width of a head.
"""
