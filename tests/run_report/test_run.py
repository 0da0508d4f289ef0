"""The folder of a run is read for what it is, however far the run went."""

import pytest

from chatsft.run_report.run import ReportError, read_run
from chatsft.run_report.scores import differences, find_pairs, find_samples, score_rows
from tests.run_report.run_folders import LOGS, write_run, write_scores, write_state


def test_a_run_has_its_log_recipe_environment_and_evaluations(tmp_path):
    folder = write_run(tmp_path / "runs" / "a")
    write_scores(folder / "after.json", "runs/a", [True])
    write_scores(folder / "zero.json", "base", [False])
    run = read_run(folder)
    assert (run.name, run.global_step, run.max_steps, run.is_complete) == ("a", 4, 4, True)
    assert run.points("loss") == [(2, 2.0), (4, 1.5)]
    assert run.keys(start="lr_") == ["lr_multiplier", "lr_matrices"]
    assert run.settings["matrix_lr"] == 0.02
    assert run.environment["python"] == "3.12.1"
    assert [(evaluation.name, evaluation.is_own) for evaluation in run.evaluations] == [("zero", False), ("after", True)]


def test_of_a_run_cut_short_the_last_checkpoint_has_the_log(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "trainer_state.json").unlink()
    for step in (9, 10):
        write_state(folder / f"checkpoint-{step}", LOGS[:2], step)
    (folder / "environment.json").unlink()
    run = read_run(folder)
    assert (run.global_step, run.points("loss"), run.environment) == (10, [(2, 2.0)], {})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trainer_state.json", None, "holds no trainer_state.json. Name the output_dir of a run"),
        ("trainer_state.json", "{", "trainer_state.json cannot be read"),
        ("trainer_state.json", "[]", "has no log_history"),
        ("recipe.yaml", "a: [", "recipe.yaml is not valid YAML"),
        ("scores.json", "{", "scores.json cannot be read"),
        ("scores.json", '{"checkpoint": "a", "tasks": {"MMLU": {}}}', "scores.json was not written by this version of chatsft.eval"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, name, text, message):
    folder = write_run(tmp_path / "a")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        read_run(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"gone is not a folder\. Name the output_dir of a run\."):
        read_run(tmp_path / "gone")


def test_other_json_files_are_left_alone(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "config.json").write_text('{"tasks": null}')
    assert read_run(folder).evaluations == []


def test_samples_show_first_what_only_one_of_the_two_models_solves(tmp_path):
    folder = write_run(tmp_path / "a")
    write_scores(folder / "before.json", "base", [True, True] + [False] * 8)
    write_scores(folder / "after.json", str(folder), [True, False] + [False] * 6 + [True, True])
    run = read_run(folder)
    samples = find_samples(run)
    assert [sample.after.index for sample in samples] == [1, 8, 9, 0, 2, 3]
    assert [sample.is_new for sample in samples] == [True] * 3 + [False] * 3
    [difference] = differences(find_pairs(run))
    assert (difference.num_better, difference.num_worse, difference.num_problems) == (2, 1, 10)
    assert [row["report"].num_correct for row in score_rows([run])] == [2, 3]


def test_without_an_evaluation_before_training_samples_stand_alone(tmp_path):
    folder = write_run(tmp_path / "a")
    write_scores(folder / "after.json", str(folder / "checkpoint-4"), [True])
    [sample] = find_samples(read_run(folder))
    assert sample.before is None
    assert not sample.is_new
