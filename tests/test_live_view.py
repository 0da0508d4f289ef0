"""The live view shows a run's figures in a terminal, and stays out of the way elsewhere."""

import io
import logging
from types import SimpleNamespace

import pytest
from rich.console import Console

from chatsft import live_view
from chatsft.callbacks import ConsoleCallback
from chatsft.live_view import LiveView, choose_console, figures_table, sparkline

STEP = {"loss": 2.5, "lr_multiplier": 0.5, "supervised_tokens": 1200, "tokens_per_second": 2000.0, "lr_matrices": 0.01, "epoch": 0.1}


def make_state(step: int, is_first: bool = True) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=20, is_world_process_zero=is_first)


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=40, color_system=None)


def watch(view: LiveView, states_and_logs: list) -> None:
    view.on_train_begin(None, make_state(0), None)
    for step, logs in states_and_logs:
        view.on_step_end(None, make_state(step), None)
        view.on_log(None, make_state(step), None, logs)


def test_a_terminal_shows_progress_figures_and_the_course_of_the_loss(terminal):
    view = LiveView(terminal)
    watch(view, [(10, STEP), (20, {**STEP, "loss": 1.25, "mfu": 0.41, "memory_gib": 3.5, "mmlu_acc": 0.25})])
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(view.render())
    view.close()
    text = shown.export_text()
    for part in ("20/20", "training loss", "1.2500", "tokens/s", "2,000", "mfu", "41.0%", "3.50 GiB", "lr matrices", "1.00e-02", "█▁"):
        assert part in text
    assert "mmlu_acc" in text


def test_evaluations_stay_as_lines_and_the_steps_do_not(terminal):
    view = LiveView(terminal)
    watch(view, [(10, STEP), (10, {"eval_loss": 1.5, "step": 10})])
    view.on_train_end(None, make_state(10), None)
    printed = terminal.file.getvalue()
    assert "Step 00010 | Validation loss: 1.500000" in printed
    assert "Step 00009 | Training loss" not in printed
    assert view.live is None


def test_only_the_first_process_shows_anything(terminal):
    view = LiveView(terminal)
    view.on_train_begin(None, make_state(0, is_first=False), None)
    view.on_step_end(None, make_state(1, is_first=False), None)
    view.on_log(None, make_state(1, is_first=False), None, STEP)
    view.on_train_end(None, make_state(1, is_first=False), None)
    assert terminal.file.getvalue() == ""


def test_lines_are_printed_where_no_terminal_is_or_bars_are_off(monkeypatch, terminal):
    args = SimpleNamespace(disable_tqdm=False)
    assert isinstance(choose_console(args), ConsoleCallback)
    monkeypatch.setattr(live_view, "Console", lambda: terminal)
    assert isinstance(choose_console(args), LiveView)
    assert isinstance(choose_console(SimpleNamespace(disable_tqdm=True)), ConsoleCallback)


def test_figures_that_were_not_logged_take_no_room():
    assert figures_table({}).row_count == 0
    assert figures_table(STEP).row_count == 2


def test_a_sparkline_averages_stretches_and_leaves_out_what_is_no_number():
    assert sparkline([1.0, 3.0, 9.0, 11.0, float("nan")], 2) == "▁█"
    assert sparkline([2.0, 2.0], 5) == "▁▁"
    assert sparkline([float("inf")], 5) == ""


def test_warnings_go_above_the_picture_and_the_handlers_are_put_back(terminal):
    logger, before = logging.getLogger("tests.live_view"), io.StringIO()
    handler = logging.StreamHandler(before)
    logging.getLogger().addHandler(handler)
    try:
        view = LiveView(terminal)
        view.on_train_begin(None, make_state(0), None)
        logger.warning("look at this")
        view.close()
        logger.warning("and at that")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "look at this" in terminal.file.getvalue()
    assert before.getvalue() == "and at that\n"
