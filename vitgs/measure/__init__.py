"""Measuring one model: cost, time, memory, energy, stages, each with its interval and its validity. It receives modules and inputs and names no system."""
