import json
import subprocess
import sys
from pathlib import Path

import pytest

from chatsft import eval as evaluation_program
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.results import format_reports
from chatsft.evaluation.statistics import BASELINES
from chatsft.evaluation.task_evaluation import summarize
from tests.evaluation.recorded_model import FIXTURES, RECORDED, load_model, load_tokenizer


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
def test_a_task_that_cannot_run_is_an_error_before_the_model_loads(data_root, capsys, tasks, message):
    assert evaluation_program.main(["no/such/model", "--tasks", *tasks, "--data_root", data_root]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_nanochat_checkpoint_gives_the_same_answers_with_a_tokenizer_path(data_root, capsys):
    arguments = [str(FIXTURES / "engine/gen_model"), "--tasks", "ARC-Easy", "--data_root", data_root]
    assert evaluation_program.main([*arguments, "--tokenizer_path", str(FIXTURES / "evaluation/tokenizer")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["ARC-Easy", "0.1111"]
    assert evaluation_program.main(arguments) == 2
    assert "holds no tokenizer. Set tokenizer_path" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--temperature", "-1"], ["--batch_size", "0"], ["--max_problems", "none"]])
def test_a_wrong_option_ends_with_the_usage(option, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation_program.main(["model", *option])
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err


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
    results = []
    for num_processes in (1, 2):
        output = tmp_path / f"{num_processes}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes), "-m", "chatsft.eval"]
        options = ["--tasks", "ARC-Easy", "GSM8K", "--data_root", data_root, "--batch_size", "2", "--max_new_tokens", "8"]
        options += ["--temperature", "1", "--output", str(output)]
        subprocess.run([*launch, checkpoint, *options], check=True, cwd=Path(__file__).parents[1], timeout=300)
        results.append(json.loads(output.read_text()))
    assert [result.pop("num_processes") for result in results] == [1, 2]
    assert results[0] == results[1]
