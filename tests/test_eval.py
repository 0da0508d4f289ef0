import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatsft import eval as evaluation_program
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.results import format_reports
from chatsft.evaluation.statistics import BASELINES
from chatsft.evaluation.task_evaluation import summarize
from chatsft.execution import Sandbox
from tests.evaluation.recorded_model import FIXTURES, RECORDED, load_model, load_tokenizer

REPOSITORY = Path(__file__).parents[1]
PROBLEMS = str(Path(__file__).parent / "fixtures" / "tasks" / "problems")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    load_model().save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    gsm8k = {"question": "A pen costs $2. What do 3 cost?", "answer": "3 pens cost 2*3=$<<2*3=6>>6\n#### 6"}
    files = {
        "arc/ARC-Easy/test.jsonl": RECORDED["arc"]["rows"],
        "mmlu/test.jsonl": RECORDED["mmlu"]["rows"],
        "gsm8k/test.jsonl": [gsm8k] * 3,
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_program_prints_and_saves_what_nanochat_measured(checkpoint, data_root, tmp_path, capsys):
    output = tmp_path / "new folder" / "results.json"
    arguments = [
        checkpoint,
        "--tasks",
        "ARC-Easy|MMLU",
        "GSM8K",
        "--data_root",
        data_root,
        "--max_new_tokens",
        "16",
        "--output",
        str(output),
    ]
    assert evaluation_program.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["ARC-Easy", "0.1111"], ["MMLU", "0.1818"]]
    assert lines[3].split()[0] == "GSM8K"
    results = json.loads(output.read_text())
    assert results["checkpoint"] == checkpoint
    assert results["options"]["max_new_tokens"] == 16
    assert list(results["tasks"]) == ["ARC-Easy", "MMLU", "GSM8K"]
    assert [problem["completions"] for problem in results["tasks"]["MMLU"]["problems"]] == [["A"]] * 11
    assert results["tasks"]["GSM8K"]["problems"][0]["prompt"].startswith("<|bos|><|user_start|>A pen costs $2.")


def test_penalties_reach_the_written_answers(checkpoint, data_root, tmp_path):
    penalties = {"plain": [], "short": ["--exponential_decay_length_penalty", "2", "100"], "varied": ["--repetition_penalty", "3"]}
    answers = {}
    for name, flags in penalties.items():
        output = tmp_path / f"{name}.json"
        arguments = [checkpoint, "--tasks", "GSM8K", "--data_root", data_root, "--max_new_tokens", "24", "--output", str(output), *flags]
        assert evaluation_program.main(arguments) == 0
        results = json.loads(output.read_text())
        answers[name] = "".join(problem["completions"][0] for problem in results["tasks"]["GSM8K"]["problems"])
        options = {flag: results["options"][flag] for flag in ("exponential_decay_length_penalty", "repetition_penalty")}
        assert list(options.values()) == {"plain": [None, 1.0], "short": [[2.0, 100.0], 1.0], "varied": [None, 3.0]}[name]
    assert len(answers["short"]) < len(answers["plain"])
    assert answers["varied"] != answers["plain"]


def test_max_problems_limits_every_task(checkpoint, data_root, capsys):
    arguments = [checkpoint, "--tasks", "ARC-Easy", "GSM8K", "--data_root", data_root, "--max_problems", "2", "--max_new_tokens", "4"]
    assert evaluation_program.main(arguments) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:]] == ["2", "2"]


def test_samples_add_pass_at_k_to_the_table(checkpoint, data_root, capsys):
    arguments = [
        checkpoint,
        "--tasks",
        "GSM8K",
        "--data_root",
        data_root,
        "--num_samples",
        "2",
        "--temperature",
        "1",
        "--max_new_tokens",
        "4",
    ]
    assert evaluation_program.main(arguments) == 0
    assert "pass@1 0.0000  pass@2 0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["arc-easy"], "did you mean ARC-Easy?"),
        (["ARC-Easy|GSM"], "did you mean GSM8K?"),
        (["SmolTalk"], "SmolTalk can be trained on but not evaluated. Tasks to evaluate: ARC-Easy"),
        (["ARC-Challenge"], "ARC-Challenge/test.jsonl"),
    ],
)
def test_a_task_that_cannot_run_is_an_error_before_the_model_loads(checkpoint, data_root, monkeypatch, capsys, tasks, message):
    monkeypatch.setattr(evaluation_program, "load_model", lambda arguments: pytest.fail("loaded"))
    assert evaluation_program.main([checkpoint, "--tasks", *tasks, "--data_root", data_root]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_nanochat_checkpoint_gives_the_same_answers_with_a_tokenizer_path(data_root, capsys):
    arguments = [str(FIXTURES / "engine/gen_model"), "--tasks", "ARC-Easy", "--data_root", data_root]
    assert evaluation_program.main([*arguments, "--tokenizer_path", str(FIXTURES / "evaluation/tokenizer")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["ARC-Easy", "0.1111"]
    assert evaluation_program.main(arguments) == 2
    assert "holds no tokenizer. Set tokenizer_path" in capsys.readouterr().err


def test_a_saved_model_without_a_tokenizer_is_an_error(data_root, tmp_path, capsys):
    load_model().save_pretrained(tmp_path)
    assert evaluation_program.main([str(tmp_path), "--tasks", "ARC-Easy", "--data_root", data_root]) == 2
    assert f"{tmp_path} holds no tokenizer: neither tokenizer_config.json nor tokenizer.pkl. Set tokenizer_path" in capsys.readouterr().err


def test_a_task_file_without_a_column_is_an_error_with_its_line(checkpoint, tmp_path, capsys):
    path = tmp_path / "gsm8k" / "test.jsonl"
    path.parent.mkdir()
    path.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2 + 2?", "result": 4}\n')
    assert evaluation_program.main([checkpoint, "--tasks", "GSM8K", "--data_root", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {path}:2: no column 'answer'; this line has question, result\n"


def test_letters_that_are_no_single_tokens_are_an_error_with_their_problem(checkpoint, tmp_path, capsys):
    path = tmp_path / "arc" / "ARC-Easy" / "test.jsonl"
    path.parent.mkdir(parents=True)
    choices = {"text": ["one", "two"], "label": ["first choice", "B"]}
    path.write_text(json.dumps({"question": "1 + 1?", "choices": choices, "answerKey": "B"}) + "\n")
    assert evaluation_program.main([checkpoint, "--tasks", "ARC-Easy", "--data_root", str(tmp_path)]) == 2
    assert "error: ARC-Easy: problem 0: the answer letter 'first choice' is 4 tokens" in capsys.readouterr().err


def test_a_prompt_beyond_the_context_is_counted_in_table_and_file(checkpoint, tmp_path, capsys):
    path, output = tmp_path / "gsm8k" / "test.jsonl", tmp_path / "results.json"
    path.parent.mkdir()
    rows = [{"question": f"{'very ' * times}long?", "answer": "#### 2"} for times in (1, 400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--tasks", "GSM8K", "--data_root", str(tmp_path), "--max_new_tokens", "4", "--output", str(output)]
    assert evaluation_program.main([checkpoint, *arguments]) == 0
    assert "(1 prompts lost their beginning: longer than the context)" in capsys.readouterr().out
    assert json.loads(output.read_text())["tasks"]["GSM8K"]["num_truncated"] == 1


def test_a_baseline_adds_the_paired_difference(checkpoint, data_root, tmp_path, capsys):
    then, now = tmp_path / "then.json", tmp_path / "now.json"
    arguments = [checkpoint, "--tasks", "ARC-Easy", "--data_root", data_root, "--output"]
    assert evaluation_program.main([*arguments, str(then)]) == 0
    earlier = json.loads(then.read_text())
    problems = earlier["tasks"]["ARC-Easy"]["problems"]
    for problem in problems[:3]:
        problem["correct"] = [not problem["correct"][0]]
    then.write_text(json.dumps(earlier))
    capsys.readouterr()
    assert evaluation_program.main([*arguments, str(now), "--baseline", str(then)]) == 0
    results = json.loads(now.read_text())
    difference = results["differences"]["ARC-Easy"]
    better, worse = (sum(problem["correct"] == [verdict] for problem in problems[:3]) for verdict in (False, True))
    assert (difference["num_better"], difference["num_worse"]) == (better, worse)
    assert difference["difference"] == pytest.approx((better - worse) / len(problems))
    header, line = capsys.readouterr().out.splitlines()[-2:]
    assert header.startswith("against the baseline")
    assert line.split()[:2] == ["ARC-Easy", f"{difference['difference']:+.4f}"]


def test_a_model_that_is_not_there_is_an_error_before_data_is_fetched(monkeypatch, capsys):
    monkeypatch.setattr(evaluation_program, "select_tasks", lambda *options: pytest.fail("fetched"))
    assert evaluation_program.main(["no/such/model"]) == 2
    assert capsys.readouterr().err == "error: no/such/model is not a folder. Name a folder with a tokenizer or a Hub id.\n"


def test_a_baseline_that_is_none_is_an_error_before_the_model_loads(checkpoint, data_root, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluation_program, "load_model", lambda arguments: pytest.fail("loaded"))
    arguments = [checkpoint, "--tasks", "ARC-Easy", "--data_root", data_root, "--baseline", str(tmp_path / "none.json")]
    assert evaluation_program.main(arguments) == 2
    assert "none.json is not there" in capsys.readouterr().err


def test_conversations_have_their_loss_by_turn_and_no_task_runs_unasked(checkpoint, tmp_path, capsys):
    path, output = tmp_path / "chat.jsonl", tmp_path / "results.json"
    roles = ("user", "assistant", "user", "assistant")
    talks = [list(zip(roles, texts, strict=True)) for texts in (("hi", "yes", "sure?", "yes"), ("a", "b", "c", "d"))]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluation_program.main([checkpoint, "--conversations", f"{{path: {path}, stop: 1}}", str(path), "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert results["tasks"] == {}
    report = results["conversations"]
    assert (report["num_conversations"], [turn["turn"] for turn in report["turns"]]) == (3, ["1", "2"])
    first, header, *turns = capsys.readouterr().out.splitlines()
    assert first.startswith(f"3 conversations, {report['num_tokens']} tokens: loss {report['token_loss']:.6f}, bits per byte ")
    assert header.split() == ["assistant", "turn", "loss", "without", "history", "tokens"]
    assert [line.split()[1] for line in turns] == [f"{turn['loss']:.4f}" for turn in report["turns"]]


@pytest.mark.parametrize(("word", "message"), [("{path: x, sop: 1}", "sop"), ("none.jsonl", "none.jsonl"), ("{path: [", "{path: [")])
def test_conversations_that_are_none_are_an_error(checkpoint, capsys, word, message):
    assert evaluation_program.main([checkpoint, "--conversations", word]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("option", [["--temperature", "-1"], ["--batch_size", "0"], ["--max_problems", "none"]])
def test_a_wrong_option_ends_with_the_usage(option, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation_program.main(["model", *option])
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_an_output_that_is_no_file_is_an_error_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "scores.json"):
        with pytest.raises(SystemExit):
            evaluation_program.main(["model", "--output", str(path)])
        assert capsys.readouterr().err.splitlines() == [
            "usage: chatsft eval CHECKPOINT ...",
            f"chatsft eval: error: --output: no file can be written at {path}; name another, as scores.json",
        ]


def test_the_default_is_all_six_tasks():
    assert evaluation_program.parse_arguments(["model"]).tasks == list(BASELINES)


def test_the_table_ends_with_chatcore_when_all_tasks_ran():
    results = [ProblemResult(index, "", "", [""], [index == 0], index == 1) for index in range(4)]
    table = format_reports([summarize(name, results) for name in BASELINES]).splitlines()
    assert len(table) == 1 + 6 + 3
    assert table[1].split()[:4] == ["ARC-Easy", "0.2500", "0.0456-0.6994", "4"]
    assert "1 prompts lost their beginning" in table[1]
    assert [line.rsplit(maxsplit=1) for line in table[-3:]] == [
        ["ChatCORE", "0.1250"],
        ["ChatCORE 2026", "0.1000"],
        ["ChatCORE categorical", "0.0000"],
    ]


@pytest.mark.slow
def test_two_processes_report_what_one_does(checkpoint, data_root, tmp_path):
    talk = tmp_path / "chat.jsonl"
    talk.write_text("".join(json.dumps({"prompt": f"question {n}", "completion": "yes " * n}) + "\n" for n in range(1, 7)))
    results = []
    for num_processes in (1, 2):
        output = tmp_path / f"{num_processes}.json"
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--num_processes", str(num_processes), "--dynamo_backend", "no", *(["--multi_gpu"] if num_processes > 1 else [])]
        options = ["--tasks", "ARC-Easy", "GSM8K", "--data_root", data_root, "--batch_size", "2", "--max_new_tokens", "8"]
        options += ["--temperature", "1", "--conversations", str(talk), "--output", str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, "-m", "chatsft.eval", checkpoint, *options], check=True, cwd=REPOSITORY, env=environment, timeout=300)
        results.append(json.loads(output.read_text()))
    assert [result.pop("num_processes") for result in results] == [1, 2]
    one, two = (result.pop("conversations") for result in results)
    assert one.pop("turns")[0] == pytest.approx(two.pop("turns")[0])
    assert one.pop("bits_per_byte") == pytest.approx(two.pop("bits_per_byte"))
    assert one == pytest.approx(two)
    assert results[0] == results[1]


def test_generated_code_is_run_in_a_sandbox_that_is_named(checkpoint, tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = [checkpoint, "--tasks", "HumanEval", "--data_root", PROBLEMS, "--max_problems", "8", "--max_new_tokens", "8"]
    assert evaluation_program.main([*arguments, "--output", str(output)]) == 0
    assert "HumanEval runs the code it is given, in a sandbox of level" in capsys.readouterr().err
    problems = json.loads(output.read_text())["tasks"]["HumanEval"]["problems"]
    assert [problem["correct"] for problem in problems] == [[False]] * 8


def test_without_a_sandbox_that_holds_generated_code_is_refused_before_the_model_is_loaded(checkpoint, monkeypatch, capsys):
    weak = {Sandbox("filters"): "no Landlock here", Sandbox("limits", landlock=False, seccomp=False): None}
    monkeypatch.setattr("chatsft.execution.choice.check_sandboxes", lambda: weak)
    monkeypatch.setattr(evaluation_program, "load_model", lambda arguments: pytest.fail("loaded"))
    arguments = [checkpoint, "--tasks", "HumanEval", "--data_root", PROBLEMS]
    assert evaluation_program.main(arguments) == 2
    error = capsys.readouterr().err
    assert "filters: no Landlock here" in error
    assert "--allow_weak_sandbox" in error


def test_a_weak_sandbox_can_be_accepted(checkpoint, monkeypatch, capsys):
    weak = {Sandbox("limits", landlock=False, seccomp=False): None}
    monkeypatch.setattr("chatsft.execution.choice.check_sandboxes", lambda: weak)
    arguments = [checkpoint, "--tasks", "HumanEval", "--data_root", PROBLEMS, "--max_new_tokens", "1", "--max_problems", "1"]
    assert evaluation_program.main([*arguments, "--allow_weak_sandbox"]) == 0
    assert "level 'limits'" in capsys.readouterr().err
