"""Evaluation of chat models: multiple choice, written answers, and ChatCORE over both."""

from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.statistics import chatcore
from chatsft.evaluation.task_evaluation import EvaluationOptions, TaskReport, evaluate_task

__all__ = ["EvaluationOptions", "ProblemResult", "TaskReport", "chatcore", "evaluate_task"]
