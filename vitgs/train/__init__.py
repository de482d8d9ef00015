"""Training and evaluation: one recipe, one loop, one start for every system. It receives modules and sources and names no system."""
