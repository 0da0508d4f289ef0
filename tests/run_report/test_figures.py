"""Pictures hold the curves that the log has, and no others."""

import pytest
from matplotlib.figure import Figure

from chatsft.run_report import figures
from chatsft.run_report.figures import COLORS, curves_of, draw_figures, supervised
from chatsft.run_report.run import read_run
from tests.run_report.run_folders import LOGS, write_run


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """Return the figures by title instead of turning them to pictures."""
    kept = {}
    monkeypatch.setattr(figures, "save", lambda figure: kept.setdefault(figure.axes[0].get_title(loc="left"), figure))
    return kept


def test_pictures_are_pngs_of_what_was_logged(tmp_path):
    pictures = draw_figures([read_run(write_run(tmp_path / "a"))])
    assert list(pictures) == ["loss", "learning_rates", "supervised_tokens", "throughput"]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_more_is_drawn_where_more_was_logged_and_what_is_no_number_is_not(tmp_path, drawn):
    more = {
        "mfu": 0.4,
        "memory_gib": 3.0,
        "skipped_steps": 1,
        "grad_norm_matrices": 0.5,
        "mmlu_acc": 0.25,
        "supervised_tokens_min": 80,
        "supervised_tokens_max": 150,
    }
    logs = [LOGS[0], LOGS[1] | more, LOGS[2] | more | {"loss": float("nan")}]
    draw_figures([read_run(write_run(tmp_path / "a", logs))])
    assert {"Model FLOP utilisation", "Memory", "Skipped steps", "Gradient norms", "Task scores during training"} <= set(drawn)
    [training, validation] = drawn["Loss"].axes[0].lines
    assert training.get_xydata().tolist() == [[2, 2.0]]
    assert validation.get_xydata().tolist() == [[0, 3.0]]
    assert len(drawn["Supervised tokens per step"].axes[0].collections) == 1


def test_supervised_tokens_are_per_step(tmp_path):
    [curve] = supervised([read_run(write_run(tmp_path / "a"))])
    assert curve.points == [(2, 100.0), (4, 150.0)]


def test_of_several_runs_each_has_a_color_and_each_key_a_style(tmp_path):
    runs = [read_run(write_run(tmp_path / name)) for name in "ab"]
    curves = curves_of(runs, {"training": "loss", "validation": "eval_loss"})
    assert [curve.label for curve in curves] == ["a training", "a validation", "b training", "b validation"]
    assert [(COLORS.index(curve.color), curve.style) for curve in curves] == [(0, "-"), (0, "--"), (1, "-"), (1, "--")]
