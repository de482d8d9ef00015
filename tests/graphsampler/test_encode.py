"""Frame by frame, each with a number of tokens of its own: the ViT on each frame alone, the dense form where numbers agree, linear, and learning."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vitgs import registry
from vitgs.backbone import runs
from vitgs.backbone.tokens import Tokens, join_frames, without_prefix
from vitgs.graphsampler import encode as encode_module
from vitgs.graphsampler.encode import encode, log_mass
from vitgs.graphsampler.losses import objective
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.select import frames_alike
from vitgs.measure import cost
from vitgs.measure.setting import no_fast_path
from vitgs.spec import Batch, Clip

CLIP = Clip(frames=8, height=32, width=32, classes=6)
Knobs = dict[str, object]
RAGGED: list[Knobs] = [{}, {"readout": "mean"}, {"utility": "none"}, {"select": "random", "utility": "none", "readout": "attention"}]


def build(**knobs: object) -> GraphSampler:
    """A model whose zero-initialised parts are exercised too."""
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **knobs)
    assert isinstance(model, GraphSampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def video(batch: int = 2) -> Tensor:
    return torch.randn(batch, *CLIP.shape, generator=torch.Generator().manual_seed(1))


def kept_by(model: GraphSampler, budget: float) -> Tokens:
    kept, _ = model._keep(video(), budget, 0.0)
    return kept if model.time is None else model.time(kept)


def frames_apart(model: GraphSampler, kept: Tokens, b: int) -> Iterator[tuple[Tensor, Tokens]]:
    """For one clip, frame after frame: where its tokens are, and they through the plain ViT alone."""
    frame_S = kept.position_BN3[b, :, 0]
    for frame in sorted(set(frame_S.tolist())):
        at = frame_S == frame
        bias = None if kept.bias_BN is None else kept.bias_BN[b : b + 1, at]
        yield at, model.vit(Tokens(x_BND=kept.x_BND[b : b + 1, at], position_BN3=kept.position_BN3[b : b + 1, at], bias_BN=bias))


# At .2 all tokens see each other's masks at once, from .4 on they are cut into blocks; at .02 most frames keep nothing.
@pytest.mark.parametrize("budget", [0.02, 0.2, 0.4, 0.7])
@pytest.mark.parametrize("knobs", RAGGED, ids=str)
def test_ragged_frames_are_each_as_if_alone(knobs: Knobs, budget: float) -> None:
    model = build(**knobs)
    with torch.no_grad():
        kept = kept_by(model, budget)
        encoded = model._encode(kept, budget)
        assert encoded.prefix == ("readout" not in knobs)
        for b in range(2):
            alone = list(frames_apart(model, kept, b))
            for at, tokens in alone:
                torch.testing.assert_close(without_prefix(encoded).x_BND[b : b + 1, at], without_prefix(tokens).x_BND, rtol=0, atol=1e-5)
            if encoded.prefix:
                weight_S = torch.full_like(kept.x_BND[b, :, 0], 1 / kept.count) if kept.bias_BN is None else kept.bias_BN[b].softmax(dim=0)
                mean = sum((weight_S[at].sum() * tokens.x_BND[0, 0] for at, tokens in alone), torch.zeros_like(encoded.x_BND[b, 0]))
                torch.testing.assert_close(encoded.x_BND[b, 0], mean, rtol=0, atol=1e-5)
    assert len({int(at.sum()) for at, _ in alone}) > 1 or budget == 0.02


@pytest.mark.parametrize("readout", ["class", "mean"])
@pytest.mark.parametrize("utility", ["learned", "none"])
@pytest.mark.parametrize("budget", [0.2, 0.6])
def test_where_all_frames_keep_as_many_it_is_the_dense_form(readout: str, utility: str, budget: float) -> None:
    dense, free = (build(readout=readout, utility=utility, decision=decision) for decision in ("dense", "free"))
    free.load_state_dict(dense.state_dict())
    kept = kept_by(dense, budget)
    alike = frames_alike("frame", "both", "dense", budget, CLIP.frames, dense.tokens)
    assert alike is not None and 1 < alike <= CLIP.frames
    found: list[tuple[Tensor, list[Tensor]]] = []
    for model, rows in ((dense, alike), (free, None)):
        encoded = encode(model.vit, kept, rows, CLIP.frames)
        nodes = without_prefix(encoded)
        together = nodes if rows is None else join_frames(nodes, rows)
        pooled = model._read(encoded, together, together)
        learned = [*model.vit.blocks.parameters(), *([model.vit.embed.class_token] if readout == "class" else [])]
        grads = torch.autograd.grad(pooled.square().sum() + together.x_BND.square().mean(), learned, retain_graph=True)
        found.append((torch.cat([pooled, together.x_BND.flatten(1)], dim=1), list(grads)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("readout", ["class", "mean"])
def test_all_tokens_a_frame_at_a_time_are_the_frame_average(readout: str) -> None:
    mean = registry.get("vit_mean").build("test", CLIP, style="digits", readout=readout).eval()
    plain = build(utility="none", layers=0, memory=0, budget=1.0, select="random", readout=readout)
    plain.load_state_dict(mean.state_dict())
    torch.testing.assert_close(plain(video()), mean(video()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("budget", [0.2, 0.6])
def test_no_frame_hears_of_another(budget: float) -> None:
    model = build(readout="mean")
    with torch.no_grad():
        kept = kept_by(model, budget)
        frame_BS = kept.position_BN3[..., 0]
        other = kept.with_x(torch.where((frame_BS == frame_BS[0, 0]).unsqueeze(-1), kept.x_BND + 1, kept.x_BND))
        changed = (model._encode(other, budget).x_BND != model._encode(kept, budget).x_BND).any(dim=2)
    assert torch.equal(changed, frame_BS == frame_BS[0, 0])


def test_the_weights_of_the_dense_form_load_and_one_checkpoint_serves_both() -> None:
    dense, free = build(decision="dense"), build()
    joint = build(attention="joint")
    for other in (free, joint):
        other.load_state_dict(dense.state_dict())
    # All tokens of a frame at a time are the same however they were chosen.
    torch.testing.assert_close(free(video(), budget=1.0), dense(video(), budget=1.0))


@pytest.mark.parametrize("knobs", [*RAGGED, {"relaxation": "straight_through"}, {"relaxation": "perturbed"}, {"diversity": 0.5}], ids=str)
def test_it_learns(knobs: Knobs) -> None:
    model = build(**knobs).train()
    batch = Batch(clip_BTCHW=video(), label_B=torch.tensor([0, 1]), run={"budget": 0.5})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    total = objective(model, batch, 0.0, torch.Generator().manual_seed(0)).total
    torch.autograd.backward(total)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.vit.blocks.parameters())
    if model.biased:
        assert model.utility is not None and bool(model.utility.get_parameter("token.weight").grad.any())  # type: ignore[union-attr]


def test_the_bias_alone_teaches_the_utility_through_attention() -> None:
    """Without graph, memory and what weighs frames, its gradient can only come through the ViT's attention."""
    model = build().train()
    torch.autograd.backward(without_prefix(model._encode(kept_by(model, 0.5), 0.5)).x_BND.square().sum())
    assert model.utility is not None and bool(model.utility.get_parameter("token.weight").grad.any())  # type: ignore[union-attr]


def test_cost_is_counted_on_shapes_and_linear_in_time() -> None:
    backbone = []
    for frames in (32, 64, 128):
        clip = Clip(frames=frames, height=32, width=32, classes=6)
        model = SYSTEM.build("test", clip, style="digits")
        found = cost.count(model, torch.zeros(1, *clip.shape), {"budget": 0.25})
        assert found.device == "meta" and found.macs is not None, found.reason
        backbone.append(found.macs_by_part["backbone"])
    # The rounding up to whole blocks apart.
    assert backbone[2] - backbone[1] == pytest.approx(2 * (backbone[1] - backbone[0]), rel=0.02)


def test_a_random_choice_is_ragged_whatever_its_decision() -> None:
    assert frames_alike("frame", "random", "dense", 0.5, 8, 16) is None
    assert frames_alike("frame", "random", "dense", 1.0, 8, 16) == 8
    assert frames_alike("frame", "both", "free", 0.5, 8, 16) is None
    assert frames_alike("joint", "both", "free", 0.5, 8, 16) == 1
    assert frames_alike("frame", "none", "free", 0.5, 8, 16) == 8


def test_a_class_token_counts_for_what_it_saw() -> None:
    """Two frames of two tokens each, one all but worthless: the other's class token is the answer, however low all utilities are."""
    bias_BS = torch.tensor([[-300.0, -301.0, -320.0, -330.0]])
    nodes = Tokens(x_BND=torch.zeros(1, 4, 3), position_BN3=torch.zeros(1, 4, 3), bias_BN=bias_BS, size_BN=torch.tensor([[1.0, 1, 1, 2]]))
    share = log_mass(nodes, 2).softmax(dim=1)
    torch.testing.assert_close(share, torch.tensor([[1.0, 0.0]]), rtol=0, atol=1e-8)
    torch.testing.assert_close(log_mass(Tokens(x_BND=nodes.x_BND, position_BN3=nodes.position_BN3), 2).softmax(dim=1), torch.full((1, 2), 0.5))


@pytest.mark.parametrize("budget", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("knobs", [*RAGGED, {"place": "between"}, {"decision": "dense"}, {"readout": "class"}, {"attention": "joint"}], ids=str)
def test_read_lengths_and_parts_for_the_cache_change_nothing(monkeypatch: pytest.MonkeyPatch, knobs: Knobs, budget: float) -> None:
    model = build(**knobs)
    for name in ("CALL_MACS", "SEGMENT_MACS"):
        monkeypatch.setattr(runs, name, 0)
    for module in (runs, encode_module):
        monkeypatch.setattr(module, "cached_tokens", lambda _: 20)
    with torch.no_grad():
        ours = model(video(), budget=budget)
        with no_fast_path():
            expected = model(video(), budget=budget)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
