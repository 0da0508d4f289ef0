"""The keys of a recipe for DPO or GRPO: TRL's own, nanochat's optimizer, and where prompts come from."""

from dataclasses import dataclass

from trl import DPOConfig, GRPOConfig

from chatsft.arguments import RecipeError, RunArguments


@dataclass
class PromptArguments:
    """What a model is rewarded for.

    Args:
        train_mixture: tasks with written answers, {task: GSM8K, split: train}.
        eval_mixture: the same, for the reward on problems that are not trained on.
        data_root: folder of local task data, in place of the Hub.
    """

    train_mixture: list
    eval_mixture: list | None = None
    data_root: str | None = None


@dataclass
class PairArguments:
    """Which answers are preferred to which.

    Args:
        train_mixture: files or datasets of pairs, {path: pairs.jsonl} with prompt, chosen and rejected; and tasks,
            {task: GSM8K, split: train}, whose problems the model itself answers before training: a right answer goes before a wrong one.
        eval_mixture: the same, for the validation loss.
        data_root: folder of local task data, in place of the Hub.
        num_samples: answers the model gives to each problem of a task.
        temperature: of these answers.
        max_new_tokens: longest of these answers.
    """

    train_mixture: list
    eval_mixture: list | None = None
    data_root: str | None = None
    num_samples: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self):
        if self.num_samples < 2:
            raise RecipeError(f"num_samples is {self.num_samples}; a pair needs at least 2 answers.")
        if self.temperature <= 0:
            raise RecipeError(f"temperature is {self.temperature}; at 0 all answers to a problem are the same. Set 1.0 for example.")


@dataclass
class GRPOArguments(RunArguments, GRPOConfig):
    """TRL's GRPOConfig with nanochat's optimizer, and as plain as our other programs: no bfloat16 or checkpointing unless asked for.

    Problems come in the order of the mixture, as nanochat's do; TRL's own order begins anew in a resumed run.
    """

    shuffle_dataset: bool | None = False
    bf16: bool | None = False
    gradient_checkpointing: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        defaults = {"top_p": 1.0, "min_p": None, "use_vllm": False, "use_transformers_continuous_batching": False}
        changed = [name for name, value in defaults.items() if vars(self)[name] != value]
        if changed:
            raise RecipeError(
                f"{', '.join(changed)} has no effect: chatsft's own generation writes the answers, with the tool in the loop."
            )


@dataclass
class DPOArguments(RunArguments, DPOConfig):
    """TRL's DPOConfig with nanochat's optimizer, and as plain as our other programs: no bfloat16 or checkpointing unless asked for."""

    bf16: bool | None = False
    gradient_checkpointing: bool | None = None
