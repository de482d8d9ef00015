"""One shared utility u(t, i) for "token i of frame t": a frame term and a token term, added in log space, so both decisions have one gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens


class Utility(nn.Module):
    """Scores patch tokens behind the glance: patch embedding, or the first block.

    Token term: a bottleneck, its difference to the previous frame (motion), a depth-wise 3x3 convolution over the grid of patches with a residual
    layer behind it, which sees how neighbouring patches fit together, and a linear layer.
    Frame term: the maximum of the token term over a frame and a temporal convolution over frames (a light policy, after AdaFrame).
    """

    def __init__(self, width: int, rows: int, columns: int, hidden: int = 32) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.down = nn.Linear(width, hidden)
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.token = nn.Linear(2 * hidden, 1)
        self.frame = nn.Conv1d(1, 8, 3, padding=1)
        self.frame_out = nn.Conv1d(8, 1, 1)
        nn.init.zeros_(self.frame_out.weight)
        nn.init.zeros_(self.frame_out.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tokens, frames: int) -> Tensor:
        """`(B, T*N, D)` patch tokens of all frames -> utility logits `(B, T, N)`; log utility is their log-sigmoid."""
        batch = tokens.x_BND.shape[0]
        h_BTNE = torch.unflatten(F.gelu(self.down(tokens.x_BND)), 1, (frames, -1))
        motion_BTNE = h_BTNE - torch.cat([h_BTNE[:, :1], h_BTNE[:, :-1]], dim=1)
        grid = torch.unflatten(h_BTNE.flatten(0, 1).transpose(1, 2), 2, (self.rows, self.columns))
        local_BTNE = h_BTNE + torch.unflatten(self.spatial(grid).flatten(2).transpose(1, 2), 0, (batch, frames))
        local_BTNE = local_BTNE + self.mix(F.gelu(local_BTNE))
        token_BTN = self.token(F.gelu(torch.cat([local_BTNE, motion_BTNE], dim=-1))).squeeze(-1)
        peak_B1T = token_BTN.amax(dim=2).unsqueeze(1)
        frame_BT1 = self.frame_out(F.gelu(self.frame(peak_B1T))).transpose(1, 2)
        utility_BTN: Tensor = token_BTN + frame_BT1
        return utility_BTN


def log_utility(utility: Tensor, temperature: float = 1.0) -> Tensor:
    """The log of the utility as a probability, which is the attention bias of a token and its weight in pooling."""
    return F.logsigmoid(utility / temperature)


def with_utility(tokens: Tokens, utility: Utility, frames: int) -> Tokens:
    """All tokens, none dropped, with their log utility as bias: the row "all tokens + utility"."""
    with stage("select"):
        bias = log_utility(utility(tokens, frames).flatten(1))
    return replace(tokens, bias_BN=bias)
