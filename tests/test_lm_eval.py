"""lm-evaluation-harness scores a saved model on the prompts of chatsft.eval and finds the same likelihoods, knowing nothing of chatsft."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatsft.convert import convert_to_transformers
from chatsft.evaluation.problems import Problem, render_problems
from chatsft.evaluation.task_evaluation import evaluate_task
from chatsft.model.loading import load_chat_model
from chatsft.tasks import create_task
from tests.evaluation.recorded_model import RECORDED, load_model, load_tokenizer

TASKS = Path(__file__).parent.parent / "recipes" / "lm_eval"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Give a folder with a saved model, the same as transformers' NanoChat, and the data."""
    folder = tmp_path_factory.mktemp("lm_eval")
    load_model().save_pretrained(folder / "ours")
    load_tokenizer().save_pretrained(folder / "ours")
    convert_to_transformers(folder / "ours", folder / "theirs")
    (folder / "arc" / "ARC-Easy").mkdir(parents=True)
    (folder / "arc" / "ARC-Easy" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RECORDED["arc"]["rows"]))
    return folder


def run_lm_eval(folder: Path, model: str) -> tuple[float, list[dict]]:
    """Run the command of the docs in a process that imports no chatsft; return the accuracy and every sample."""
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "chat_arc_easy", "--include_path", str(TASKS)]
    command += ["--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32", "--apply_chat_template"]
    command += ["--device", "cpu", "--batch_size", "4", "--output_path", f"out-{model}", "--log_samples"]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HOME": str(folder / "hf_home")}
    run = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    [results], [samples] = (list((folder / f"out-{model}").rglob(pattern)) for pattern in ("results_*.json", "samples_*.jsonl"))
    accuracy = json.loads(results.read_text())["results"]["chat_arc_easy"]["acc,none"]
    return accuracy, [json.loads(line) for line in samples.read_text().splitlines()]


@torch.no_grad()
def log_likelihoods(folder: Path) -> dict[str, list[float]]:
    """Score the letters of every prompt by plain forward passes; by prompt."""
    model, tokenizer = load_chat_model(str(folder / "ours"), device=torch.device("cpu"), dtype=torch.float32)
    task = create_task("ARC-Easy", split="test", data_root=str(folder))

    def score(problem: Problem) -> list[float]:
        log_probabilities = model(torch.tensor([problem.prompt_ids])).logits[0, -1].log_softmax(-1)
        return [log_probabilities[tokenizer.encode_special(letter)].item() for letter in problem.conversation["letters"]]

    return {tokenizer.decode(problem.prompt_ids): score(problem) for problem in render_problems(task, tokenizer, 2048)}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ours", "theirs"])
def test_the_harness_finds_our_likelihoods_and_our_accuracy(folder, model):
    accuracy, samples = run_lm_eval(folder, model)
    expected = log_likelihoods(folder)
    assert len(samples) == len(expected) == len(RECORDED["arc"]["rows"])
    for sample in samples:
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == pytest.approx(expected[sample["arguments"]["gen_args_0"]["arg_0"]], abs=1e-4)
    task = create_task("ARC-Easy", split="test", data_root=str(folder))
    chat_model = load_chat_model(str(folder / "ours"), device=torch.device("cpu"), dtype=torch.float32)
    assert accuracy == pytest.approx(evaluate_task("ARC-Easy", task, *chat_model).accuracy)
