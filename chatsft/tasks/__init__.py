"""Tasks: where conversations come from and how answers are judged."""

from chatsft.tasks.arc import ARC
from chatsft.tasks.arithmetic import Arithmetic
from chatsft.tasks.customjson import CustomJSON
from chatsft.tasks.gsm8k import GSM8K
from chatsft.tasks.humaneval import HumanEval
from chatsft.tasks.mixture import TaskMixture, TaskSequence, mixture_order
from chatsft.tasks.mmlu import MMLU
from chatsft.tasks.multiple_choice import render_mc
from chatsft.tasks.registry import TASKS, create_task
from chatsft.tasks.simplespelling import SimpleSpelling
from chatsft.tasks.smoltalk import SmolTalk
from chatsft.tasks.spellingbee import SpellingBee
from chatsft.tasks.task import Task

__all__ = [
    "ARC",
    "GSM8K",
    "MMLU",
    "TASKS",
    "Arithmetic",
    "CustomJSON",
    "HumanEval",
    "SimpleSpelling",
    "SmolTalk",
    "SpellingBee",
    "Task",
    "TaskMixture",
    "TaskSequence",
    "create_task",
    "mixture_order",
    "render_mc",
]
