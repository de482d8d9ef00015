"""The image ViT that every system starts from, composed of `vit.embed`, `vit.blocks`, `vit.norm`; systems call the pieces in their own order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from vitgs.backbone.block import Block
from vitgs.backbone.embeddings import PatchEmbed
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, with_prefix
from vitgs.record import Clip, Size


class Vit(nn.Module):
    """Patch embedding, blocks and final norm. `make_block` gives systems with another block (divided attention) the same skeleton and state dict."""

    def __init__(
        self,
        size: Size,
        style: Style,
        clip: Clip,
        *,
        patch: int | None = None,
        class_token: bool = True,
        make_block: Callable[[Size, Style], nn.Module] = Block,
    ) -> None:
        super().__init__()
        self.embed = PatchEmbed(size, style, clip, patch or style.patch)
        self.has_class_token = class_token
        if not class_token:
            del self.embed.class_token
        self.pre_norm = nn.LayerNorm(size.width, eps=style.eps) if style.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(make_block(size, style) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=style.eps)
        self.apply(_init)

    def enter(self, tokens: Tokens) -> Tokens:
        """What stands before the blocks: the class token, where there is one, and CLIP's norm."""
        with stage("backbone"):
            if self.has_class_token:
                tokens = with_prefix(tokens, self.embed.class_token)
            return tokens.with_x(self.pre_norm(tokens.x_BND))

    def run(self, tokens: Tokens, blocks: Iterable[Callable[[Tokens], Tokens]] | None = None) -> Tokens:
        """All blocks (or those given) and the final norm."""
        with stage("backbone"):
            for block in self.blocks if blocks is None else blocks:
                tokens = block(tokens)
            return tokens.with_x(self.norm(tokens.x_BND))

    def forward(self, tokens: Tokens) -> Tokens:
        """Patch tokens to encoded tokens, class token first."""
        return self.run(self.enter(tokens))

    def patches(self, clip_BTCHW: Tensor) -> Tokens:
        """The patch tokens of all frames, `(B, T*N, D)`."""
        with stage("backbone"):
            tokens: Tokens = self.embed(clip_BTCHW)
        return tokens


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 if module.in_features > 128 else module.in_features**-0.5 / 2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
