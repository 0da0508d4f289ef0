"""The arguments of a run, which are also the keys of a recipe."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


class RecipeError(ValueError):
    """Settings that cannot be run, with the key at fault and what to do."""


@dataclass
class ModelArguments:
    """Which model to start from.

    Args:
        model_name_or_path: a save_pretrained folder, a Hub id, or a nanochat checkpoint folder.
        tokenizer_path: a tokenizer of its own; needed for a nanochat checkpoint (the folder of tokenizer.pkl).
        attn_implementation: attention backend; by default "varlen" when packing and "sdpa" otherwise.
    """

    model_name_or_path: str
    tokenizer_path: str | None = None
    attn_implementation: str | None = None


@dataclass
class DataArguments:
    """What to train on and how conversations become batches.

    Args:
        train_mixture: list of entries, {task: GSM8K, split: train, repeat: 2} or {path: my.jsonl}.
        eval_mixture: the same, for the validation loss.
        data_root: folder of local task data, in place of the Hub.
        mixture_order: "shuffled", nanochat's order, or "sequence", one entry after the other.
        max_length: tokens a conversation or a packed row may have; longer conversations are cut.
        packing: put several conversations into a row.
        target_examples_per_step: conversations per optimizer step, over all processes.
        total_batch_size: tokens per optimizer step, over all processes, in place of target_examples_per_step.
        dataset_num_proc: processes that render.
    """

    train_mixture: list
    eval_mixture: list | None = None
    data_root: str | None = None
    mixture_order: str = "shuffled"
    max_length: int = 2048
    packing: bool = True
    target_examples_per_step: int | None = None
    total_batch_size: int | None = None
    dataset_num_proc: int | None = None

    def __post_init__(self):
        if (self.target_examples_per_step is None) == (self.total_batch_size is None):
            raise RecipeError("Set either target_examples_per_step (conversations) or total_batch_size (tokens), and not both.")
        if self.total_batch_size is not None and not self.packing:
            raise RecipeError("total_batch_size counts the tokens of packed rows. Set packing: true, or use target_examples_per_step.")
        for name in ("max_length", "target_examples_per_step", "total_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; it must be at least 1.")


@dataclass
class ChatArguments(TrainingArguments):
    """transformers' TrainingArguments, with nanochat's optimizer and the defaults that sameness with nanochat needs.

    Args:
        optimizer: muon_2025, muon_2026 or adamw.
        matrix_lr: rate of the matrices.
        embedding_lr: rate of the embedding, scaled by (width / 768) ** -0.5; value embeddings get half of it.
        unembedding_lr: rate of the head, scaled likewise.
        scalar_lr: rate of the 2026 scalars.
        init_lr_frac: factor on every rate.
        warmdown_ratio: share of the updates over which the rates fall; 1 is nanochat's linear decay of 2025.
        final_lr_frac: what the rates fall to.
        loss_average: "token", over the supervised tokens of a step, or "micro_batch", nanochat's mean of means.
        torch_compile: compile the layers for training (Trainer itself would compile the whole model, evaluation included).
        muon_precision: "bfloat16" or "float32" for Muon's matrix products; by default bfloat16 on a GPU.
    """

    optimizer: str = "muon_2025"
    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    scalar_lr: float = 0.5
    init_lr_frac: float = 1.0
    warmdown_ratio: float = 1.0
    final_lr_frac: float = 0.0
    loss_average: str = "token"
    muon_precision: str | None = None
    # The mixture is shuffled already, and nanochat neither clips gradients nor hides a NaN.
    max_grad_norm: float = 0.0
    train_sampling_strategy: str = "sequential"
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    ddp_find_unused_parameters: bool | None = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    num_train_epochs: float = 1.0
    logging_steps: float = 1
    report_to: str | list[str] | None = "none"
    save_strategy: str = "no"
    resume_from_checkpoint: str | bool | None = None

    def __post_init__(self):
        self.compile_layers, self.torch_compile = self.torch_compile, False
        super().__post_init__()
        _check_choice("optimizer", self.optimizer, ("muon_2025", "muon_2026", "adamw"))
        _check_choice("loss_average", self.loss_average, ("token", "micro_batch"))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is {value!r}; it may be {', '.join(choices)}.")
