"""The tool-using model whose evaluation was recorded, and the tasks it was recorded on."""

import json
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from chatsft.model.nanochat_checkpoint import load_nanochat_model
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.tasks import Task
from chatsft.tasks.answers import is_right_answer
from chatsft.tasks.multiple_choice import is_right_letter, make_choice_conversation

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDED = json.loads((FIXTURES / "evaluation/eval_loops_2025.json").read_text())


@cache
def load_model() -> PreTrainedModel:
    return load_nanochat_model(FIXTURES / "engine/gen_model")


@cache
def load_tokenizer() -> GPTTokenizer:
    return load_nanochat_tokenizer(FIXTURES / "evaluation/tokenizer")


class ListTask(Task):
    """Given conversations, judged as ARC and MMLU are, or by their final number."""

    def __init__(self, conversations: list[dict], eval_type: str):
        super().__init__()
        self.conversations, self.kind = conversations, eval_type

    @property
    def eval_type(self) -> str:
        return self.kind

    def num_examples(self) -> int:
        return len(self.conversations)

    def get_example(self, index: int) -> dict:
        return self.conversations[index]

    def evaluate(self, conversation: dict, completion: str) -> bool | int:
        judge = is_right_letter if self.kind == "categorical" else is_right_answer
        return judge(conversation, completion)


def recorded_task(name: str) -> ListTask:
    if name == "spellingbee":
        return ListTask(RECORDED[name]["conversations"], "generative")
    return ListTask([CONVERSATION[name](row) for row in RECORDED[name]["rows"]], "categorical")


CONVERSATION = {
    "arc": lambda row: make_choice_conversation(row["question"], row["choices"]["label"], row["choices"]["text"], row["answerKey"]),
    "mmlu": lambda row: make_choice_conversation(row["question"], list("ABCD"), row["choices"], "ABCD"[row["answer"]]),
}
