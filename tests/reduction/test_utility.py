"""The utility: shapes, what it reacts to, and its gradient through a hard selection."""

from __future__ import annotations

import torch

from vitgs.backbone.embeddings import PatchEmbed
from vitgs.backbone.sizes import size, style
from vitgs.backbone.tokens import Tokens
from vitgs.reduction.utility import Utility, log_utility, with_utility
from vitgs.spec import Clip

CLIP = Clip(frames=4, height=16, width=32)


def parts() -> tuple[PatchEmbed, Utility]:
    embed, utility = PatchEmbed(size("test"), style("digits"), CLIP, 8), Utility(32, 2, 4)
    for parameter in utility.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return embed, utility


@torch.no_grad()
def test_a_change_reaches_the_frame_after_it_and_neighbours_in_space() -> None:
    embed, utility = parts()
    torch.nn.init.zeros_(utility.frame_out.weight)
    clip = torch.randn(1, *CLIP.shape)
    before = utility(embed(clip), 4)
    assert before.shape == (1, 4, 8)
    clip[:, 1, :, :8, :8] += 3
    changed = (utility(embed(clip), 4) - before).abs()[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 0], [1, 1], [1, 4], [1, 5], [2, 0]]


@torch.no_grad()
def test_the_frame_term_moves_a_frame_as_a_whole() -> None:
    embed, utility = parts()
    clip = torch.randn(1, *CLIP.shape)
    whole = utility(embed(clip), 4)
    torch.nn.init.zeros_(utility.frame_out.weight)
    torch.nn.init.zeros_(utility.frame_out.bias)  # type: ignore[arg-type]
    frame_term = whole - utility(embed(clip), 4)
    torch.testing.assert_close(frame_term, frame_term[:, :, :1].expand_as(frame_term))
    assert frame_term.std() > 1e-3


def test_bias_is_the_log_of_a_probability() -> None:
    embed, utility = parts()
    tokens = embed(torch.randn(2, *CLIP.shape))
    biased = with_utility(tokens, utility, 4)
    assert isinstance(biased, Tokens)
    assert biased.bias_BN is not None
    assert biased.bias_BN.shape == (2, 32)
    assert (biased.bias_BN <= 0).all()
    torch.testing.assert_close(biased.bias_BN.exp(), utility(tokens, 4).flatten(1).sigmoid())
    assert torch.equal(biased.x_BND, tokens.x_BND)
    torch.testing.assert_close(log_utility(torch.tensor(2.0), 4.0), torch.tensor(0.5).sigmoid().log())
