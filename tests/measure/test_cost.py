"""Literal figures: a counter that is wrong in the same way on both sides would still be caught here."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.embeddings import shrunk
from vitgs.backbone.stages import stage
from vitgs.measure import cost, formula, witnesses
from vitgs.measure.by_call import canonical
from vitgs.measure.formula import FormulaCounter
from vitgs.measure.witnesses import Missing


class Frames(nn.Module):
    """An image model as a video model of one frame."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.model(clip.flatten(0, 1))
        return logits


class DataDependent(nn.Module):
    """Runs its layer on the positive values only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 10)

    def forward(self, clip: Tensor) -> Tensor:
        values: Tensor = self.layer(clip[clip > 0][:, None])
        return values


class Staged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, clip: Tensor, times: int = 1) -> Tensor:
        with stage("backbone"):
            x = self.first(clip)
            with stage("graph"):
                for _ in range(times):
                    x = x @ torch.ones(8, 8, device=clip.device)
        logits: Tensor = self.second(x)
        return logits


def test_a_vit_base_is_17_56_giga_macs_by_both_counters() -> None:
    counted = cost.count(Frames(timm.create_model("vit_base_patch16_224")), torch.zeros(1, 1, 3, 224, 224), {})
    assert counted.macs == 17_563_828_224
    assert counted.flops == 2 * 17_563_828_224
    assert counted.counters == {"torch": 17_563_828_224, "formula": 17_563_828_224}
    assert counted.params == counted.params_trainable == 86_567_656
    assert (counted.device, counted.uncounted, counted.reason) == ("meta", (), "")


def test_witnesses_name_what_they_leave_out() -> None:
    model = Frames(timm.create_model("vit_tiny_patch16_224"))
    counted = cost.count(model, torch.zeros(1, 1, 3, 224, 224), {}, witnesses_too=True)
    assert counted.macs == 1_253_683_200
    # 12 blocks x 2 products x 197 x 197 x 192 of fused attention are missing in both.
    assert counted.counters["fvcore"] == counted.counters["ptflops"] == 1_253_683_200 - 12 * 2 * 197 * 197 * 192
    assert any(line.startswith("fvcore: aten::scaled_dot_product_attention") for line in counted.uncounted)
    assert any(line.startswith("ptflops: aten::scaled_dot_product") for line in counted.uncounted)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mask", ["none", "boolean", "float", "causal"])
def test_attention_is_counted_on_every_path(device: str, mask: str) -> None:
    q, k = torch.zeros(2, 3, 7, 16, device=device), torch.zeros(2, 3, 5, 16, device=device)
    v = torch.zeros(2, 3, 5, 8, device=device)
    masks = {"boolean": torch.ones(7, 5, dtype=torch.bool, device=device), "float": torch.zeros(7, 5, device=device)}
    for context in (torch.no_grad, torch.inference_mode):
        with context(), FormulaCounter() as counter:
            F.scaled_dot_product_attention(q, k, v, attn_mask=masks.get(mask), is_causal=mask == "causal")
        assert counter.macs == 2 * 3 * 7 * 5 * (16 + 8)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(64, 10), (1, 5, 64), 3_200),
        (nn.Conv2d(3, 8, 4, stride=4), (1, 3, 32, 32), 24_576),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 10), 7_200),
        (nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), (1, 3, 4, 8, 8), 6_144),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), (1, 4, 5, 5), 800),
        (nn.GRU(4, 6, batch_first=True), (1, 3, 4), 3 * 18 * (4 + 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (1, 5, 8), 5 * 8 * 32 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16),
    ],
)
def test_layers_have_their_literal_macs(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    counted = cost.count(layer, torch.zeros(shape), {})
    assert counted.macs == macs
    assert counted.counters == {"torch": macs, "formula": macs}


def test_pure_formulas() -> None:
    assert formula.product_macs((2, 3, 4), (2, 4, 5)) == 120
    assert formula.product_macs((3, 4), (4,)) == 12
    assert formula.convolution_macs((1, 3, 8, 8), (16, 3, 2, 2), (1, 16, 4, 4), transposed=False) == 3_072
    assert formula.attention_macs((1, 2, 10, 4), (1, 2, 20, 4), (1, 2, 20, 4)) == 3_200
    assert formula.distance_macs((2, 5, 3), (2, 7, 3)) == 210


def test_einsum_and_distances_are_counted_in_inference_mode() -> None:
    with torch.inference_mode(), FormulaCounter() as counter:
        torch.einsum("bnd,bmd->bnm", torch.zeros(2, 5, 3), torch.zeros(2, 7, 3))
        torch.cdist(torch.zeros(2, 5, 3), torch.zeros(2, 7, 3), compute_mode="donot_use_mm_for_euclid_dist")
    assert counter.macs == 420


def test_shapes_that_depend_on_values_are_counted_on_the_clip() -> None:
    clip = torch.tensor([[[[[1.0, -1.0, 2.0]]]]])
    counted = cost.count(DataDependent(), clip, {})
    assert (counted.device, counted.macs) == ("cpu", 20)
    spread = cost.spread(DataDependent(), torch.cat([clip, -clip, -clip]), {})
    assert (spread.samples, spread.mean, spread.p50) == ((20, 10, 10), 40 / 3, 10)


def test_parts_are_own_macs_of_stages_and_run_knobs_count() -> None:
    counted = cost.count(Staged(), torch.zeros(1, 1, 1, 1, 4), {"times": 3})
    assert counted.macs_by_part == {"backbone": 32, "graph": 192, "other": 16}
    assert sum(counted.macs_by_part.values()) == counted.macs
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert cost.count(model, torch.zeros(1, 1, 1, 1, 4), {}).macs_by_part == {"0": 32, "1": 16}


def test_disagreement_means_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formula, "product_macs", lambda left, right: 1)
    counted = cost.count(nn.Linear(64, 10), torch.zeros(1, 1, 1, 1, 64), {})
    assert (counted.macs, counted.flops) == (None, None)
    assert counted.reason == "the counters disagree by more than 1%: torch 640, formula 1 MACs (aten::addmm)"


def test_a_parameter_may_be_a_modules_input() -> None:
    class Initial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.layer = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 3)

        def forward(self, clip: Tensor) -> Tensor:
            logits: Tensor = self.layer(self.start.expand(len(clip), -1))
            return logits

    model = Initial()
    counted = cost.count(model, torch.zeros(1, 1, 1, 1, 4), {})
    assert (counted.macs, counted.params_trainable) == (12, 19)
    assert all(p.requires_grad for p in model.parameters())


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout())
    model[0].eval()
    cost.count(model, torch.zeros(1, 1, 1, 1, 4), {})
    assert [m.training for m in model.modules()] == [True, False, True]
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_what_nobody_counts_is_named() -> None:
    class Inverse(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            inverse: Tensor = torch.linalg.inv(clip[0, 0])
            return inverse

    counted = cost.count(Inverse(), torch.eye(4)[None, None, None], {})
    assert counted.uncounted == ("torch and formula: aten::linalg_inv_ex",)


class Product(nn.Module):
    """A matrix times each head's tokens, which fvcore counts for one head, and an attention, which it doesn't count."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 8))

    def forward(self, clip: Tensor) -> Tensor:
        heads = clip.reshape(1, 3, 8, -1)
        mixed = self.mix @ heads
        out: Tensor = F.scaled_dot_product_attention(heads, mixed, mixed)
        return out


def test_what_a_witness_counts_too_low_is_named_with_what_it_counted() -> None:
    found = cost.count(Product(), torch.randn(1, 1, 3, 8, 16), {}, witnesses_too=True)
    product, attention = 3 * 4 * 8 * 16, 2 * 3 * 8 * 4 * 16
    assert found.macs == product + attention
    assert found.left_out["fvcore"] == {
        "aten::scaled_dot_product_attention": Missing(macs=attention),
        "matmul": Missing(macs=product - product // 3, counted=product // 3),
    }
    assert list(found.left_out["ptflops"].values()) == [Missing(macs=attention)]
    assert "fvcore: matmul (33 % of it counted)" in found.uncounted


def test_one_name_for_what_counters_call_differently() -> None:
    assert {canonical(name) for name in ("aten::_convolution", "aten::conv2d", "conv", "aten::convolution")} == {"conv"}
    assert canonical("aten::_scaled_dot_product_flash_attention_for_cpu") == "scaled_dot_product_attention"
    assert canonical("aten::linear") == "linear"


class Rounding(nn.Module):
    """Does arithmetic with sizes, which are tensors while a model is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        kept = max(1, round(0.5 * clip.shape[1])) + round(0.1 * clip.size(1)) + math.floor(0 / clip.numel())
        small = shrunk(clip[:, :kept], round(len(clip) / 2) + 4)
        logits: Tensor = self.layer(small.flatten(2)).mean(dim=1)
        return logits


def test_a_model_that_rounds_sizes_is_counted_by_all() -> None:
    found = cost.count(Rounding(), torch.randn(1, 4, 3, 8, 16), {}, witnesses_too=True)
    assert found.counters == dict.fromkeys(("torch", "formula", "fvcore", "ptflops"), 2 * 3 * 4 * 8 * 5)
    assert found.uncounted == ()


def _hooks(model: nn.Module) -> list[dict[str, Any]]:
    return [{name: dict(value) for name, value in vars(module).items() if "hooks" in name} for module in model.modules()]


class Untraceable(nn.Sequential):
    """fvcore's tracer fails in the middle of it, with its hooks on."""

    def forward(self, clip: Tensor) -> Tensor:
        x: Tensor = self[0](clip)
        if torch._C._get_tracing_state():
            raise RuntimeError("not while traced")
        out: Tensor = self[1](x)
        return out


@pytest.mark.parametrize("kind", [nn.Sequential, Untraceable])
def test_witnesses_leave_no_hook_on_a_model(kind: type[nn.Sequential]) -> None:
    model = kind(nn.Linear(4, 8), nn.BatchNorm3d(1))
    heard: list[float] = []
    model[0].register_forward_hook(_listen(heard))
    clip = torch.randn(1, 1, 2, 3, 4)
    before, state, out = _hooks(model), pickle.dumps(model.state_dict()), model.eval()(clip)
    weights = {name: id(value) for name, value in model.named_parameters()}
    found = cost.count(model, clip, {}, witnesses_too=True)
    assert found.counters["ptflops"] == 2 * 3 * 4 * 8
    assert (found.counters["fvcore"] is None) == (kind is Untraceable)
    assert _hooks(model) == before
    assert pickle.dumps(model.state_dict()) == state
    assert {name: id(value) for name, value in model.named_parameters()} == weights
    assert torch.equal(model(clip), out)


def test_a_model_can_be_stored_after_the_witnesses() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    clip = torch.randn(1, 1, 1, 1, 4)
    before = pickle.dumps(model)
    cost.count(model, clip, {}, witnesses_too=True)
    assert pickle.dumps(model) == before
    assert torch.equal(pickle.loads(pickle.dumps(model))(clip), model(clip))


def _listen(heard: list[float]) -> Any:
    return lambda module, inputs, output: heard.append(0.0)


def test_a_model_that_can_not_be_copied_has_no_witnesses() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("there is one of me")

    found = cost.count(Locked(4, 3), torch.zeros(1, 1, 1, 1, 4), {}, witnesses_too=True)
    assert (found.macs, found.counters["fvcore"], found.counters["ptflops"]) == (12, None, None)
    assert "ptflops: not counted: the model can't be copied (TypeError)" in found.uncounted


class TwoFaced(nn.Module):
    """Does less where nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, clip: Tensor) -> Tensor:
        x: Tensor = self.first(clip)
        return x if clip.is_meta else self.second(x)


def test_a_witness_that_disagrees_and_lacks_no_operator_means_no_number() -> None:
    clip = torch.zeros(1, 1, 1, 1, 4)
    assert cost.count(TwoFaced(), clip, {}).macs == 32
    found = cost.count(TwoFaced(), clip, {}, witnesses_too=True)
    assert (found.macs, found.flops) == (None, None)
    assert found.reason == "fvcore differs by +200.0%, no operator named"
    assert found.uncounted == ("fvcore: differs by +200.0%, no operator named", "ptflops: differs by +200.0%, no operator named")


def test_a_difference_is_explained_by_names_only_as_far_as_they_go() -> None:
    named = {"aten::some": Missing(macs=20), "aten::other": Missing(macs=-5, counted=25)}
    low = witnesses.Witness(macs=84, left_out=named)
    assert low.explained(99, 0.01)
    assert low.said(99, 0.01) == ("aten::some", "aten::other (125 % of it counted)")
    assert not low.explained(120, 0.01)
    assert low.said(120, 0.01)[2] == "differs by -17.5% with aten::some, aten::other added, no operator named"
    assert witnesses.Witness(macs=None, reason="not counted").explained(120, 0.01)


def test_what_a_witness_counts_alone_is_no_explanation() -> None:
    more = witnesses.Witness(macs=110, left_out={"aten::new": Missing(macs=-10, counted=10)})
    assert not more.explained(100, 0.01)
    assert more.said(100, 0.01) == ("aten::new (counted by it alone)", "differs by +10.0%, counts aten::new, which ours don't")


def test_errors_of_two_operators_do_not_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv3d(1, 1, 1, bias=False)).eval()
    clip = torch.zeros(1, 1, 4, 4, 8)
    whole = cost.count(model, clip, {}).macs
    assert whole
    monkeypatch.setitem(formula.FORMULAS, "aten::addmm", lambda args, out: 0)
    monkeypatch.setitem(formula.FORMULAS, "aten::convolution", lambda args, out: whole)
    found = cost.count(model, clip, {})
    assert found.macs is None
    assert "addmm" in found.reason and "convolution" in found.reason
