"""The pure parts of the long benchmarks: the order of cells, exponents of known numbers, rows that survive, twins with the method's own logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.benchmarks import long_clips, overhead, rows, twins
from vitgs import registry
from vitgs.baselines.vit_mean import VitMean
from vitgs.errors import UsageError
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.record import Clip, Estimate

CLIP = Clip(frames=4, height=32, width=32, classes=6)


def video(batch: int = 2) -> Tensor:
    return torch.randn(batch, *CLIP.shape, generator=torch.Generator().manual_seed(0))


def sampler(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("pico", CLIP, style="digits", **knobs)
    assert isinstance(model, GraphSampler)
    return model.eval()


@pytest.mark.parametrize("knobs", [{}, {"attention": "frame", "decision": "dense"}, {"readout": "class"}, {"glance": "patch"}, {"utility": "none"}])
@pytest.mark.parametrize("budget", [0.25, 1.0])
def test_on_its_own_choice_the_twin_has_the_logits_of_the_encoded_part(knobs: dict[str, object], budget: float) -> None:
    model = sampler(layers=0, memory=0, **knobs)
    with torch.inference_mode():
        kept = twins.kept_by(model, video(), budget)
        expected = model(video(), budget=budget)
        given = twins.given_tokens(model, video(), kept, budget, biased=True)
    if knobs.get("glance") == "patch":  # kept from what a convolution embedded; the twin embeds by a product
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(given, expected)


def test_without_the_bias_the_twin_is_a_plain_vit_on_those_tokens() -> None:
    model = sampler(layers=0, memory=0)
    plain = sampler(layers=0, memory=0, utility="none")
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        kept = twins.kept_by(model, video(), 0.25)
        assert torch.equal(twins.given_tokens(model, video(), kept, 0.25, biased=False), plain(video(), budget=0.25))
        assert not torch.equal(plain(video(), budget=0.25), model(video(), budget=0.25))


def test_what_is_kept_is_the_models_choice_in_time_order() -> None:
    model = sampler()
    with torch.inference_mode():
        kept = twins.kept_by(model, video(), 0.25)
        tokens, _ = model._keep(video(), 0.25, 0.0)
        again = model.vit.embed.some(video(), kept.index_BS)
    assert kept.index_BS.shape == (2, 16) and bool((kept.index_BS.diff(dim=1) > 0).all())
    assert torch.equal(again.position_BN3, tokens.position_BN3) and torch.equal(again.x_BND, tokens.x_BND)


@pytest.mark.parametrize("at_once", [1, 3, 4, 8])
def test_vit_mean_has_its_logits_in_any_chunks(at_once: int) -> None:
    mean = registry.get("vit_mean").build("pico", CLIP, style="digits").eval()
    assert isinstance(mean, VitMean)
    with torch.inference_mode():
        torch.testing.assert_close(twins.mean_in_chunks(mean, video(), at_once), mean(video()), atol=1e-5, rtol=1e-5)


def test_a_vit_mean_that_skips_frames_is_not_fed_in_chunks() -> None:
    mean = registry.get("vit_mean").build("pico", CLIP, style="digits", frames=2).eval()
    assert isinstance(mean, VitMean)
    with pytest.raises(UsageError, match="all frames"):
        twins.mean_in_chunks(mean, video(), 2)


def test_cells_come_in_the_order_of_their_cost() -> None:
    cells = overhead.ordered(["B", "S"], [16, 8], [8, 1], [1.0, 0.125])
    assert len(cells) == 16
    assert [(c.size, c.frames, c.batch, c.budget) for c in cells[:5]] == [
        ("S", 8, 1, 0.125),
        ("S", 8, 1, 1.0),
        ("S", 8, 8, 0.125),
        ("S", 8, 8, 1.0),
        ("S", 16, 1, 0.125),
    ]
    assert (cells[-1].size, cells[-1].frames, cells[-1].batch, cells[-1].budget) == ("B", 16, 8, 1.0)


def test_chunks_are_one_to_the_whole_batch() -> None:
    assert twins.chunkings(8, 1) == [1, 2, 4, 8]
    assert twins.chunkings(16, 8) == [1, 2, 4, 8, 16, 128]


def test_extra_time_is_told_by_stage() -> None:
    extra = twins.extra_ms(12.0, {"select": 0.25, "backbone": 0.5, "graph": 0.25}, 8.0, {"select": 0.125, "backbone": 0.75})
    assert extra == {"select": 2.0, "backbone": 0.0, "graph": 3.0}


def test_a_row_that_falls_short_names_its_largest_extra_stage() -> None:
    def of(value: float, low: float, high: float) -> dict[str, object]:
        return rows.plain(Estimate(value=value, low=low, high=high))

    row = {
        "overhead": of(1.3, 1.2, 1.4), "realised_share": of(0.88, 0.85, 0.92), "graph_to_backbone": 0.08,
        "stage_extra_ms": {"select": 5.0, "graph": 20.0}, "ms": {overhead.GIVEN: of(100.0, 99.0, 101.0)},
    }  # fmt: skip
    largest = "largest extra: graph +20 ms, 20 % of the given ViT"
    assert overhead.shortfalls({"size": "S", "batch": 1}, row) == ["overhead 1.3 above 1.15", largest]
    share = "realised share 0.88 below 0.9, the interval holds it"
    assert overhead.shortfalls({"size": "S", "batch": 8}, row) == ["overhead 1.3 above 1.15", share, largest]
    assert overhead.shortfalls({"size": "S", "batch": 1}, row | {"overhead": of(1.1, 1.0, 1.2)}) == []


def test_exponents_of_literal_numbers() -> None:
    assert long_clips.exponent([8, 16, 32], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert long_clips.exponent([8, 16, 32], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert long_clips.exponent([8, 16, 32], [1.0, 2.0, 8.0]) == pytest.approx(1.5)  # 1, then 2: the mean of the doublings
    assert long_clips.doublings([8, 16, 64], [1.0, 2.0, 32.0]) == pytest.approx([1, 2])
    with pytest.raises(UsageError, match="two"):
        long_clips.exponent([8], [1.0])


def test_the_exponent_of_rounds_has_their_spread() -> None:
    rounds = {8: [1.0] * 6, 16: [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]}
    fitted = long_clips.fitted(rounds)
    assert (fitted.value, fitted.low, fitted.high) == pytest.approx((1.5, 1, 2))


def test_memory_is_foreseen_from_the_growth_so_far() -> None:
    assert long_clips.foreseen({}, 8) is None
    assert long_clips.foreseen({8: 100}, 16) == 400  # one point: the worst, quadratic
    assert long_clips.foreseen({8: 100, 16: 200}, 64) == pytest.approx(800)
    assert long_clips.foreseen({8: 100, 16: 400}, 32) == pytest.approx(1600)
    assert long_clips.foreseen({8: 100, 16: 100}, 32) == pytest.approx(200)  # never less than linear


def test_rounds_are_enough_for_an_interval_however_slow_a_call() -> None:
    assert rows.rounds_in(20.0, 1.0) == (12, 20.0)
    assert rows.rounds_in(20.0, 2.0) == (6, 20.0)
    assert rows.rounds_in(20.0, 100.0) == (6, 350.0)


def test_rows_are_found_again_and_a_cut_one_is_run_again(tmp_path: Path) -> None:
    record, settings = tmp_path / "new" / "rows.jsonl", {"threads": 2}
    first, second = ({"name": rows.name_of({"budget": b}, settings), "settings": settings, "status": "measured"} for b in (0.25, 0.5))
    assert first["name"] != second["name"] and rows.read(record) == []
    rows.append(record, first)
    with record.open("ab") as file:
        file.write(b'{"name": "cut')
    rows.append(record, second)
    assert rows.measured(rows.read(record)) == {first["name"], second["name"]}
    rows.append(record, second | {"status": "failed"})
    assert [row["status"] for row in rows.latest(rows.read(record), settings)] == ["measured", "failed"]
    assert rows.latest(rows.read(record), {"threads": 1}) == []


def test_budgets_are_written_as_fractions() -> None:
    assert (rows.budget_of("1/8"), rows.budget_of("0.5")) == (0.125, 0.5)
    with pytest.raises(UsageError, match="1/8"):
        rows.budget_of("half")
