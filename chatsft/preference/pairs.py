"""Pairs of a preferred and another answer: read from files and datasets, or found among the model's own answers to a task."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from chatsft.arguments import RecipeError
from chatsft.data.conversations import find_path, load_folder, load_from_hub, read_values
from chatsft.data.entries import check_entry
from chatsft.data.formats import describe
from chatsft.data.mixture import pick_rows
from chatsft.evaluation.task_evaluation import evaluating
from chatsft.generation.decoder import release_workspaces
from chatsft.generation.tool_state import sampled_mask
from chatsft.generation.tool_use import generate_completions, max_prompt_tokens
from chatsft.model.tokenization_gpt import ConversationError, GPTTokenizer
from chatsft.preference.arguments import PairArguments
from chatsft.preference.prompts import load_prompts, score
from chatsft.preference.rollout import render_prompts
from chatsft.tasks.bad_rows import handle_bad_rows

SAMPLED_TOGETHER = 256
"""Answers written at a time."""


def load_pairs(
    key: str, entries: Sequence[dict], data: PairArguments, folders: Sequence[Path], model: PreTrainedModel, tokenizer: GPTTokenizer
) -> datasets.Dataset:
    """Load the pairs of all entries, one after the other; the problems of tasks are answered by the model now.

    Returns:
        Columns `prompt_ids`, `chosen_ids`, `rejected_ids`, the masks `chosen_mask` and `rejected_mask` (1 = the model's own token; tool
        output is not), and `source`.
    """
    rows = []
    for number, entry in enumerate(entries, 1):
        check_entry(entry, f"{key} entry {number}")
        if "task" in entry:
            rows += sample_pairs(entry, key, data, model, tokenizer)
        else:
            rows += read_pairs(entry, folders, tokenizer)
    if not rows:
        raise RecipeError(f"{key} gives no pair. For a task, some problem has to be answered both right and wrong in num_samples answers.")
    return datasets.Dataset.from_list(rows)


def sample_pairs(entry: dict, key: str, data: PairArguments, model: PreTrainedModel, tokenizer: GPTTokenizer) -> list[dict]:
    """Let the model answer the problems of a task several times, and pair the best answer to each with the worst."""
    problems, [task] = load_prompts([entry], data.data_root, key)
    prompts = render_prompts(problems["prompt"], tokenizer, max_prompt_tokens(model.config, data.max_new_tokens))
    scored = []
    for number, drawn in enumerate(draw_answers(prompts, data, model, tokenizer)):
        scores = [score(task, problems[number]["index"], ids, tokenizer) for ids in drawn]
        scored.append((prompts[number], drawn, scores))
    release_workspaces()  # the model stays for the whole run, as the reference
    rows = [sampled_pair(*answers, tokenizer) | {"source": entry["task"]} for answers in scored if len(set(answers[2])) > 1]
    mean = sum(sum(scores) for _, _, scores in scored) / (len(scored) * data.num_samples)
    PartialState().print(f"{entry['task']}: {len(scored)} problems, mean reward {mean:.4f}; {len(rows)} gave a pair", flush=True)
    return rows


def draw_answers(prompts: list[list[int]], data: PairArguments, model: PreTrainedModel, tokenizer: GPTTokenizer) -> list[list[list[int]]]:
    """Draw `num_samples` answers to each prompt, each with the token that ended it.

    Whole batches go to a process, each with a seed of its own, so that the answers are the same however many processes there are.
    """
    size, state = max(1, SAMPLED_TOGETHER // data.num_samples), PartialState()
    drawn = []
    with evaluating(model), torch.no_grad():
        for start in range(state.process_index * size, len(prompts), state.num_processes * size):
            completions = generate_completions(
                model,
                tokenizer,
                prompts[start : start + size],
                max_new_tokens=data.max_new_tokens,
                temperature=data.temperature,
                top_k=None,
                num_samples=data.num_samples,
                seed=start,
                keep_end=True,
            )
            drawn += enumerate(completions, start)
    return [completions for _, completions in sorted(gather_object(drawn))]


def sampled_pair(prompt: list[int], drawn: list[list[int]], scores: list[float], tokenizer: GPTTokenizer) -> dict:
    """Pair the first of the best answers with the first of the worst."""
    chosen, rejected = (drawn[scores.index(value)] for value in (max(scores), min(scores)))
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "chosen_mask": sampled_mask(chosen, tokenizer),
        "rejected_mask": sampled_mask(rejected, tokenizer),
    }


def read_pairs(entry: dict, places: Sequence[Path], tokenizer: GPTTokenizer) -> list[dict]:
    """Read the pairs of a file, a folder or a dataset on the Hub, and render them."""
    values, rows, problems = open_rows(entry, list(places)), [], []
    for index in pick_rows(len(values), entry):
        origin, value, problem = values[int(index)]
        try:
            if problem is None:
                rows.append(render_pair(*pair_conversations(value), tokenizer) | {"source": entry["path"]})
        except ConversationError as error:
            problem = f"{origin}: {error}"
        problems += [problem] if problem else []
    handle_bad_rows(entry["path"], problems, len(rows) + len(problems))
    return rows * (entry.get("repeat") or 1)


def open_rows(entry: dict, places: list[Path]) -> Sequence[tuple[str, dict, str | None]]:
    """Return (where, row, problem) for every row of an entry."""
    path = find_path(entry["path"], places)
    if path is not None and path.is_file():
        return list(read_values(path))
    split = entry.get("split", "train")
    rows = load_folder(path, split) if path is not None else load_from_hub(entry["path"], entry.get("name"), split, places)
    return [(f"{entry['path']}[{index}]", row, None) for index, row in enumerate(rows)]


def pair_conversations(row: object) -> tuple[list[dict], list[dict]]:
    """Turn a row of any of TRL's layouts into two conversations that differ in their last message.

    >>> pair_conversations({"prompt": "1+1?", "chosen": "2", "rejected": "3"})[1]
    [{'role': 'user', 'content': '1+1?'}, {'role': 'assistant', 'content': '3'}]
    """
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        raise ConversationError(f"no pair in {describe(row)}; expected prompt, chosen and rejected, or two conversations in the last two")
    chosen, rejected = (as_messages(row.get("prompt") or [], row[name], name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise ConversationError("chosen and rejected differ before their last message, so they are no answers to the same prompt")
    if chosen == rejected:
        raise ConversationError("chosen and rejected are the same, so there is nothing to prefer. Leave the row out")
    return chosen, rejected


def as_messages(prompt: object, answer: object, name: str) -> list[dict]:
    """Put a prompt and an answer, each a text or messages, together; messages that begin with another role hold the prompt too."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if not isinstance(after, list) or not after or not all(isinstance(message, dict) for message in [*before, *after]):
        raise ConversationError(f"{name} is {describe(answer)}, expected a text or messages")
    messages = [*before, *after] if after[0].get("role") == "assistant" else after
    if messages[-1].get("role") != "assistant":
        raise ConversationError(f"{name} ends with a message of role {messages[-1].get('role')!r}, expected the assistant's")
    return messages


def render_pair(chosen: list[dict], rejected: list[dict], tokenizer: GPTTokenizer) -> dict:
    """Render two conversations and cut both where their last answers begin."""
    prompt = tokenizer.apply_chat_template(chosen[:-1], add_generation_prompt=True, return_dict=False)
    row = {"prompt_ids": prompt}
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        ids, mask = tokenizer.render_conversation({"messages": messages}, max_tokens=None)
        row |= {f"{name}_ids": ids[len(prompt) :], f"{name}_mask": mask[len(prompt) :]}
    return row


class PairCollator:
    """Pad prompts with their preferred answers, then the same prompts with the others, on the right: a batch for TRL's DPOTrainer.

    Its `completion_mask` is 0 on the prompt and on tool output, which the model does not answer for.

    Args:
        max_length: tokens a prompt with its answer may have; the rest is cut off. None keeps all.
    """

    def __init__(self, pad_token_id: int, max_length: int | None):
        self.pad_token_id, self.max_length = pad_token_id, max_length

    def __call__(self, pairs: Sequence[dict]) -> dict[str, torch.Tensor]:
        ids, masks = [], []
        for name in ("chosen", "rejected"):
            ids += [torch.tensor((pair["prompt_ids"] + pair[f"{name}_ids"])[: self.max_length]) for pair in pairs]
            masks += [torch.tensor(([0] * len(pair["prompt_ids"]) + pair[f"{name}_mask"])[: self.max_length]) for pair in pairs]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "completion_mask": pad_sequence(masks, batch_first=True),
        }
