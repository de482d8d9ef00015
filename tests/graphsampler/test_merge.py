"""Merging on top of the choice: nothing at r = 0, fewer tokens in time order otherwise, each part by its own rule."""

from __future__ import annotations

import pytest
import torch

from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.graphsampler.explain import explain
from vitgs.graphsampler.merge import in_time_order, tome, vtm, within_frames
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.stream import stream
from vitgs.spec import Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)


def video() -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **({"attention": "joint"} | knobs))
    assert isinstance(model, GraphSampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tokens(frames: int = 3, each: int = 4, prefix: int = 0) -> tuple[Tokens, torch.Tensor]:
    torch.manual_seed(0)
    count = frames * each
    t = torch.arange(frames).repeat_interleave(each).float()
    position = torch.stack([t, torch.arange(count).float() % 2, torch.zeros(count)], dim=-1)
    position = torch.cat([torch.full((prefix, 3), -1.0), position]).expand(2, -1, -1)
    x, key = torch.randn(2, prefix + count, 5), torch.randn(2, prefix + count, 6)
    bias = torch.cat([torch.zeros(2, prefix), torch.randn(2, count) - 3], dim=1)
    return Tokens(x_BND=x, position_BN3=position, prefix=prefix, bias_BN=bias), within_frames(key, position[..., 0], frames)


@pytest.mark.parametrize("merge", ["tome", "vtm"])
@pytest.mark.parametrize("knobs", [{}, {"readout": "attention"}, {"attention": "frame", "decision": "dense"}], ids=str)
def test_no_merges_are_the_plain_model(merge: str, knobs: dict[str, object]) -> None:
    plain, merging = build(**knobs), build(merge=merge, r=0, **knobs)
    assert plain.state_dict().keys() == merging.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(plain(video(), budget=0.5), merging(video(), budget=0.5))
        merging.merges = tuple(0 for _ in merging.merges)
        kept, _ = merging._keep(video(), 0.5, 0.0)
        encoded, nodes, appearance = merging._encode_merging(kept, kept.x_BND, 0.5)
        assert torch.equal(encoded.x_BND, merging._encode(kept, 0.5).x_BND)
        assert torch.equal(appearance, kept.x_BND) and torch.equal(nodes.position_BN3, kept.position_BN3)


@pytest.mark.parametrize("merge", ["tome", "vtm"])
@pytest.mark.parametrize("readout", ["class", "mean", "attention"])
@pytest.mark.parametrize("knobs", [{}, {"attention": "frame", "decision": "dense"}, {"utility": "learned", "message": "mean"}], ids=str)
def test_merging_leaves_fewer_nodes_and_every_part_learns(merge: str, readout: str, knobs: dict[str, object]) -> None:
    model = build(merge=merge, r=2, readout=readout, **knobs)
    kept, _ = model._keep(video(), 0.5, 0.0)
    _, nodes, appearance = model._encode_merging(kept, kept.x_BND, 0.5)
    rows = 4 if model.attention == "frame" else 1
    assert nodes.count == kept.count - rows * sum(model.merges) and appearance.shape == (2, nodes.count, kept.x_BND.shape[2])
    time = nodes.position_BN3[..., 0]
    assert torch.equal(time, time.round()) and (time[:, 1:] >= time[:, :-1]).all()
    logits = model.train()(video(), budget=0.5)
    assert torch.isfinite(logits).all()
    torch.autograd.backward(logits.sum())
    assert model.utility is not None and float(model.utility.get_parameter("token.weight").grad.abs().sum()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("prefix", [0, 1])
def test_frames_mix_only_when_no_pair_is_left_in_one(prefix: int) -> None:
    some, metric = tokens(prefix=prefix)
    for fewer in (tome(some, metric, 2), vtm(some, metric, 2, noisy=False)):
        assert fewer.count == some.count - 2
        time = fewer.position_BN3[:, prefix:, 0]
        assert torch.equal(time, time.round())


def test_tome_carries_sizes_and_means() -> None:
    some, metric = tokens()
    fewer = tome(some, metric, 3)
    assert fewer.size_BN is not None and fewer.bias_BN is not None
    assert fewer.size_BN.sum(dim=1).tolist() == [12.0, 12.0]
    torch.testing.assert_close((fewer.x_BND * fewer.size_BN.unsqueeze(-1)).sum(1), some.x_BND.sum(1))


@pytest.mark.parametrize("prefix", [0, 1])
def test_vtm_averages_the_most_similar_into_targets_of_high_utility(prefix: int) -> None:
    some, metric = tokens(prefix=prefix)
    assert some.bias_BN is not None
    fewer = vtm(some, metric, 3, noisy=False)
    assert fewer.prefix == prefix and torch.equal(fewer.x_BND[:, :prefix], some.x_BND[:, :prefix])
    for b in range(2):
        x, bias, key = some.x_BND[b, prefix:], some.bias_BN[b, prefix:], metric[b, prefix:]
        targets = bias.topk(2).indices.tolist()
        best = {i: max(targets, key=lambda j: float(key[i] @ key[j])) for i in range(12) if i not in targets}
        merged = sorted(best, key=lambda i: -float(key[i] @ key[best[i]]))[:3]
        groups = [[i, *(m for m in merged if best[m] == i)] for i in range(12) if i not in merged]
        torch.testing.assert_close(fewer.x_BND[b, prefix:], torch.stack([x[g].mean(0) for g in groups]))
        assert fewer.bias_BN is not None
        torch.testing.assert_close(fewer.bias_BN[b, prefix:], torch.stack([bias[g].mean() for g in groups]))


def test_vtm_leaves_its_targets() -> None:
    some, metric = tokens()
    assert vtm(some, metric, 100, noisy=True).count == 2
    assert vtm(some, metric, 0, noisy=True) is some


def test_merged_nodes_go_back_to_time_order() -> None:
    position = torch.tensor([[[2.4, 0.0, 0.0], [0.0, 1.0, 0.0], [1.6, 0.0, 0.5]]])
    nodes, appearance = in_time_order(Tokens(x_BND=torch.arange(3.0).view(1, 3, 1), position_BN3=position), torch.arange(3.0).view(1, 3, 1))
    assert nodes.position_BN3[0, :, 0].tolist() == [0.0, 2.0, 2.0]
    assert nodes.x_BND.flatten().tolist() == appearance.flatten().tolist() == [1.0, 0.0, 2.0]


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UsageError, match="picks its targets by utility"):
        build(merge="vtm", utility="none")
    for knobs in ({"place": "between"}, {"relaxation": "lagrange"}):
        with pytest.raises(UsageError, match="merging needs place=behind"):
            build(merge="tome", **knobs)
    for knobs in ({}, {"select": "random", "decision": "dense"}):
        with pytest.raises(UsageError, match="merging a frame at a time needs the same number of tokens"):
            build(merge="tome", attention="frame", **knobs)
    model = build(merge="tome")
    with pytest.raises(UsageError, match="streaming needs merge=none"):
        stream(model, video(), 2)
    with pytest.raises(UsageError, match="explain needs merge=none"):
        explain(model, video()[0])
