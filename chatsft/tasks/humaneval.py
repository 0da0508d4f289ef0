"""HumanEval: 164 Python functions to complete (Chen et al., 2021), judged by running their tests."""

import ast
import re
from pathlib import Path

from chatsft.execution import Program, Verdict, find_sandbox, run_programs
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


def build_program(conversation: dict, completion: str) -> Program:
    """Put together the prompt's imports and the completion's code, and the tests that judge it.

    The prompt goes before the tests too, for its imports and the helper functions that some tests call.
    """
    prompt = conversation["messages"][0]["content"]
    imports = extract_imports(prompt)
    return Program(
        solution=f"{imports}\n\n{extract_program(completion)}",
        tests=f"{conversation['test']}\ncheck({conversation['entry_point']})",
        entry_point=conversation["entry_point"],
        preamble=prompt if is_code(prompt) else imports,
    )


def is_code(text: str) -> bool:
    """Say whether Python can parse it."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


class HumanEval(Task):
    """Function heads with docstrings; the conversation carries its `test` and `entry_point`.

    Args:
        allow_weak_sandbox: judge completions even where the code they bring cannot be locked in (see docs/sandbox.md).
    """

    eval_type = "generative"

    def __init__(self, split: str = "test", data_root: str | Path | None = None, allow_weak_sandbox: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.allow_weak_sandbox = allow_weak_sandbox
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

    def prepare_evaluation(self) -> str:
        return f"HumanEval runs the code it is given, in a sandbox of level {find_sandbox(self.allow_weak_sandbox).level!r}"

    def run(self, answers: list[tuple[dict, str]]) -> list[Verdict]:
        """Run the code of (conversation, completion) pairs, as many at a time as there are processors, and say what went wrong in each."""
        programs = [build_program(conversation, completion) for conversation, completion in answers]
        return run_programs(programs, find_sandbox(self.allow_weak_sandbox))

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return self.evaluate_all([(conversation, completion)])[0]

    def evaluate_all(self, answers: list[tuple[dict, str]]) -> list[bool]:
        return [verdict.passed for verdict in self.run(answers)]

    def fingerprint(self) -> str:
        return self.table.fingerprint
