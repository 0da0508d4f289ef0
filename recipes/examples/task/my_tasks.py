"""Write a number backwards."""

import random

from chatsft.tasks import Task


class Reversed(Task):
    eval_type = "generative"  # the model writes an answer; "categorical" is to choose one of `letters`

    def __init__(self, split: str, size: int = 1000, **kwargs):
        super().__init__(**kwargs)  # start, stop, step
        self.split, self.size = split, size

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> dict:
        number = str(random.Random(f"{self.split} {index}").randrange(100, 1000))
        return {
            "messages": [
                {"role": "user", "content": f"Write {number} backwards."},
                {"role": "assistant", "content": number[::-1]},
            ]
        }

    def evaluate(self, conversation: dict, completion: str) -> bool:  # not needed to train
        return completion.strip() == conversation["messages"][-1]["content"]

    def fingerprint(self) -> str:  # or leave it out: then all conversations are hashed, to see whether they changed
        return f"{self.split} {self.size}"
