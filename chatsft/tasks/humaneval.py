"""HumanEval: 164 Python functions to complete (Chen et al., 2021), judged by running their tests."""

import re
from pathlib import Path

from chatsft.tasks.table import check_choice, load_table
from chatsft.tasks.task import Task

CODE_BLOCK = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)


def extract_imports(prompt: str) -> str:
    """Return the import lines before the first line of other code.

    >>> extract_imports("from math import pi\\n\\ndef area(r):\\n    import os")
    'from math import pi'
    """
    imports = []
    for line in map(str.strip, prompt.split("\n")):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(imports)


def extract_program(completion: str) -> str:
    """Return the first fenced block (``` or ```python on a line of its own), or the whole completion if there is none."""
    match = CODE_BLOCK.search(completion)
    return (match[1] if match else completion).strip()


def build_program(conversation: dict, completion: str) -> str:
    """Put together the prompt's imports, the completion's code and the tests, as one program that exits cleanly if they pass."""
    imports = extract_imports(conversation["messages"][0]["content"])
    check = f"{conversation['test']}\ncheck({conversation['entry_point']})"
    return "\n\n".join([imports, extract_program(completion), check])


class HumanEval(Task):
    """Function heads with docstrings; the conversation carries its `test` and `entry_point`."""

    eval_type = "generative"

    def __init__(self, split: str = "test", data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        check_choice("HumanEval split", split, ("test",))
        hub = {"path": "openai/openai_humaneval", "split": split}
        self.table = load_table(hub, "humaneval/HumanEval.jsonl", ("prompt", "canonical_solution", "entry_point", "test"), data_root)

    def num_examples(self) -> int:
        return len(self.table.rows)

    def get_example(self, index: int) -> dict:
        row = self.table.rows[index]
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": f"{row['prompt']}\n{row['canonical_solution']}"},
        ]
        return {"messages": messages, "entry_point": row["entry_point"], "test": row["test"]}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        raise NotImplementedError(
            "HumanEval runs generated code and needs the sandbox chatsft/execution.py; build_program() gives the program to run in it"
        )

    def fingerprint(self) -> str:
        return self.table.fingerprint
