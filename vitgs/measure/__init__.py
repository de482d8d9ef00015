"""Measuring one model: cost, time, memory, energy, stages, each with its interval and validity. It receives modules and names no system."""
