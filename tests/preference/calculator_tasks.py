"""A model and a task for preference training: tiny, offline, with a tool."""

import copy
import json
from pathlib import Path

from chatsft.model.loading import set_special_tokens
from chatsft.tasks import Task
from chatsft.tasks.answers import is_right_answer
from tests.evaluation.recorded_model import load_model, load_tokenizer

SETTINGS = {
    "optimizer": "muon_2025",
    "muon_precision": "float32",
    "init_lr_frac": 0.05,
    "max_steps": 1,
    "use_cpu": True,
}


class Sums(Task):
    """Two and two, three and three, ..., worked out with the calculator."""

    eval_type = "generative"

    def num_examples(self) -> int:
        return 4

    def get_example(self, index: int) -> dict:
        number = index + 2
        parts = [
            {"type": "python", "text": f"{number}+{number}"},
            {"type": "python_output", "text": str(2 * number)},
            {"type": "text", "text": f"\n#### {2 * number}"},
        ]
        question = {"role": "user", "content": f"What is {number} and {number}?"}
        return {"messages": [question, {"role": "assistant", "content": parts}]}

    def evaluate(self, conversation: dict, completion: str) -> int:
        return is_right_answer(conversation, completion)


class Unjudged(Sums):
    """Can be trained on, not evaluated."""

    eval_type = Task.eval_type


SUMS = {"task": f"{__name__}:Sums"}


def answer(index: int, is_right: bool) -> list[int]:
    """Return the ids of an answer to a sum, with a tool call, its result and its end."""
    tokenizer, number = load_tokenizer(), index + 2
    tokens = {name: tokenizer.encode_special(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")}
    call = [tokens["python_start"], *tokenizer.encode_ordinary(f"{number}+{number}"), tokens["python_end"]]
    result = [tokens["output_start"], *tokenizer.encode_ordinary(str(2 * number)), tokens["output_end"]]
    final = tokenizer.encode_ordinary(f"\n#### {2 * number if is_right else 99}")
    return [*call, *result, *final, tokenizer.encode_special("<|assistant_end|>")]


def save_model(folder: Path) -> Path:
    model = copy.deepcopy(load_model())
    set_special_tokens(model, load_tokenizer())
    model.save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return folder


def save_recipe(folder: Path, model: Path, **settings) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"model_name_or_path": str(model), "output_dir": str(folder / "out")} | SETTINGS | settings))
    return path
