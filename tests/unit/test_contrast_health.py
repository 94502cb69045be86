"""Collapse is seen where there is one, and only there."""

import logging
import math

import pytest
import torch

from polycl.checkpoints import NetworkConfig
from polycl.contrast.health import PATIENCE, SPREAD_BOUND, Monitor, effective_rank, spread
from polycl.segmenter.network import GRID, ProjectionHead, build_encoder

pytestmark = pytest.mark.unit

LN2 = math.log(2)


def sphere(count: int = 64, size: int = 32) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0))


def collapsed() -> torch.Tensor:
    return torch.ones(64, 32) + 1e-3 * sphere()


def test_spread_is_that_of_the_sphere_when_even_and_nothing_when_collapsed() -> None:
    assert spread(100 * sphere(4096)) == pytest.approx(1 / math.sqrt(32), rel=0.01)
    assert spread(collapsed()) < 1e-3


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_rank_counts_directions_used_alike(directions: int) -> None:
    assert effective_rank(torch.eye(8)[:directions].repeat(5, 1)) == pytest.approx(directions, rel=1e-4)


def test_rank_lies_between_one_and_all() -> None:
    assert effective_rank(collapsed()) == pytest.approx(1, abs=0.1)
    assert 20 < effective_rank(sphere()) < 32


def test_healthy_embeddings_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    looks = [monitor.look(sphere(), LN2 * (1 - 0.03 * step), LN2) for step in range(2 * PATIENCE)]
    assert not any(one.collapsed for one in looks)
    assert not caplog.records


def test_collapse_is_told_at_the_first_look_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    looks = [monitor.look(collapsed(), LN2, LN2) for _ in range(3)]
    assert all(one.collapsed and "collapse" in str(one.warning) for one in looks)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_recovery_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    monitor.look(collapsed(), LN2, LN2)
    assert not monitor.look(sphere(), 0.3, LN2).collapsed
    assert "recovered" in caplog.text


def test_a_quiet_monitor_judges_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert Monitor(quiet=True).look(collapsed(), LN2, LN2).collapsed
    assert not caplog.records


def test_a_loss_stuck_at_chance_is_told_once_it_has_lasted() -> None:
    monitor = Monitor()
    looks = [monitor.look(sphere(), LN2 * 1.001, LN2) for _ in range(PATIENCE)]
    assert [one.collapsed for one in looks] == [False] * (PATIENCE - 1) + [True]
    assert "0.693" in str(looks[-1].warning)


def test_a_loss_that_leaves_chance_late_is_no_longer_warned_of() -> None:
    monitor = Monitor()
    for _ in range(PATIENCE):
        monitor.look(sphere(), LN2, LN2)
    assert not monitor.look(sphere(), 0.5 * LN2, LN2).collapsed


@pytest.mark.parametrize(("pooling", "width"), [("average", 8), ("max", 8), ("grid", 8 * GRID**2)])
def test_pooling_the_grid_or_the_maximum_survives_instance_norm(pooling: str, width: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(NetworkConfig(features=(4, 4, 8, 8, 8, 4), norm="instance"))
    head = ProjectionHead(8, 16, pooling)  # type: ignore[arg-type]
    stripes = torch.arange(1, 9)[:, None] * torch.linspace(0, 1, 128)
    slices = torch.sin(20 * stripes)[:, None, :, None].expand(-1, 1, -1, 128)
    pooled: list[torch.Tensor] = []
    head.layers[0].register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    assert head(encoder(slices)).shape == (8, 16)
    assert pooled[0].shape == (8, width)
    lost = spread(pooled[0]) < SPREAD_BOUND / math.sqrt(width)
    assert lost == (pooling == "average")
