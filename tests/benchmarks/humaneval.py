"""Judge all of HumanEval's own solutions, in every sandbox that holds here.

    python -m tests.benchmarks.humaneval --data_root FOLDER

FOLDER holds humaneval/HumanEval.jsonl. All 164 have to pass.
"""

import argparse
import sys
import time

from chatsft.execution import Sandbox, run_programs
from chatsft.execution.__main__ import describe
from chatsft.execution.choice import check_sandbox
from chatsft.execution.run import num_workers
from chatsft.execution.sandbox import SANDBOXES
from chatsft.tasks import HumanEval
from chatsft.tasks.humaneval import build_program


def judge_solutions(task: HumanEval, sandbox: Sandbox) -> int:
    """Print how many pass and in what time; return how many do not."""
    programs = [build_program(conversation, conversation["messages"][-1]["content"]) for conversation in task]
    start = time.perf_counter()
    verdicts = run_programs(programs, sandbox)
    seconds = time.perf_counter() - start
    failed = [verdict.fault for verdict in verdicts if not verdict.passed]
    passed = f"{len(verdicts) - len(failed)} of {len(verdicts)} pass"
    print(f"{describe(sandbox):35} {passed}, {seconds:.1f} s on {num_workers()} processors", *failed)
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_root", required=True, help="folder with humaneval/HumanEval.jsonl")
    task = HumanEval(data_root=parser.parse_args().data_root)
    return sum(judge_solutions(task, sandbox) for sandbox in SANDBOXES if check_sandbox(sandbox) is None)


if __name__ == "__main__":
    sys.exit(main())
