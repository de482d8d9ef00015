"""How the shared utility becomes a choice of (frame, token) pairs: which axis it may thin, dense or free, noisy in training and hard at test time."""

from __future__ import annotations

import torch
from torch import Tensor

from vitgs.reduction.selection import frames_and_tokens, gumbel, kept_count, random_pairs, spread_frames, top_frames_then_tokens, top_pairs

SELECTORS = ("both", "frame", "token", "none", "random", "uniform")
DECISIONS = ("free", "dense")
NOISES = ("constant", "annealed", "none")
PATTERN_SEED = 20_260_101


def kept_shape(select: str, decision: str, budget: float, frames: int, tokens: int) -> tuple[int, int]:
    """Kept frames M and tokens a frame K, M*K <= B; for the free choice M is 1 and K is B."""
    total = kept_count(budget, frames * tokens)
    if select == "none":
        return frames, tokens
    if select in ("frame", "uniform"):
        return max(1, total // tokens), min(tokens, total)
    if select == "token":
        return min(frames, total), max(1, total // frames)
    if decision == "free" or select == "random":
        return 1, total
    return frames_and_tokens(budget, frames, tokens)


def ragged(select: str, decision: str) -> bool:
    """Whether each frame keeps a number of tokens of its own."""
    return select == "random" or (select == "both" and decision == "free")


def frames_alike(attention: str, select: str, decision: str, budget: float, frames: int, tokens: int) -> int | None:
    """Kept frames with as many tokens as each other, for a frame at a time in the ViT: 1 where all attend jointly, None where numbers differ."""
    kept_frames, kept_tokens = kept_shape(select, decision, budget, frames, tokens)
    if attention == "joint":
        return 1
    if not ragged(select, decision):
        return kept_frames
    return frames if kept_frames * kept_tokens == frames * tokens else None


def noise_scale(noise: str, progress: float) -> float:
    """How strong the noise is at that share of the training; annealed, it is gone for the last fifth, where the choice is as hard as at test."""
    return {"constant": 1.0, "annealed": max(0.0, 1 - progress / 0.8), "none": 0.0}[noise]


def choose(utility_BTN: Tensor, *, select: str, decision: str, budget: float, noise: float, fixed: bool) -> Tensor:
    """Indices `(B, S)` into T*N, in time order.

    `noise`: scale of the Gumbel noise on the utility, which makes the choice a sample without replacement instead of the best. `fixed`: random
    choices follow one seeded pattern (test time).
    """
    batch, frames, tokens = utility_BTN.shape
    kept_frames, kept_tokens = kept_shape(select, decision, budget, frames, tokens)
    device = utility_BTN.device
    if select == "none" or kept_frames * kept_tokens == frames * tokens:
        return torch.arange(frames * tokens, device=device).expand(batch, -1)
    if select == "random":
        seed = PATTERN_SEED if fixed else int(torch.randint(2**31, ()))
        generator = torch.Generator().manual_seed(seed)
        return random_pairs(1 if fixed else batch, frames * tokens, kept_tokens, generator, device).expand(batch, -1)
    score = utility_BTN.detach()
    if noise:
        score = score + noise * gumbel(score)
    if select == "uniform":
        # Frames evenly spread; when not even one frame fits, its evenly spread tokens.
        frame_M = spread_frames(frames, kept_frames, device)
        token_K = spread_frames(tokens, kept_tokens, device)
        return (frame_M[:, None] * tokens + token_K).flatten().expand(batch, -1)
    if select == "both" and decision == "free":
        return top_pairs(score, kept_tokens)
    return top_frames_then_tokens(score, kept_frames, kept_tokens)
