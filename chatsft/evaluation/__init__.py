"""Evaluation of chat models: multiple choice, written answers, ChatCORE over both, and the loss on conversations."""

from chatsft.evaluation.conversation_loss import ConversationReport, evaluate_conversations
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.statistics import chatcore
from chatsft.evaluation.task_evaluation import EvaluationOptions, TaskReport, evaluate_task

__all__ = [
    "ConversationReport",
    "EvaluationOptions",
    "ProblemResult",
    "TaskReport",
    "chatcore",
    "evaluate_conversations",
    "evaluate_task",
]
