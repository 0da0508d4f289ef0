"""The arguments of a run, which are also the keys of a recipe."""

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from huggingface_hub import constants, get_token
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations


class RecipeError(ValueError):
    """Settings that cannot be run, with the key at fault and what to do."""


ADAPTER_KEYS = ("trainable_token_indices", "use_dora", "load_in_4bit", "merge_adapter")
"""Keys beside lora_* that mean nothing without an adapter."""


@dataclass
class ModelArguments:
    """Which model to start from.

    Args:
        model_name_or_path: a save_pretrained folder, a Hub id, or a nanochat checkpoint folder.
        tokenizer_path: a tokenizer of its own; needed for a nanochat checkpoint (the folder of tokenizer.pkl).
        load_optimizer: go on with the momenta of nanochat's pretraining, from the optim_*_rank*.pt beside a nanochat checkpoint (2026).
        vision_model: a vision encoder, as google/siglip-base-patch16-224, to put in front of a model that reads text only; it stays frozen,
            and a projector behind it is trained. A saved model that reads images has its own.
        attn_implementation: attention backend; by default "varlen" when packing and "sdpa" otherwise, where the model allows it.
        lora_r: rank of a LoRA adapter, trained in place of the weights; None trains the weights.
        lora_alpha: scale of the adapter, which counts lora_alpha / lora_r.
        lora_dropout: dropout before the adapter.
        lora_target_modules: modules that get one, by the ends of their names; by default every linear layer but the head.
        lora_modules_to_save: modules trained in full beside it, as embed_tokens and lm_head.
        trainable_token_indices: tokens, as ids or text, whose embeddings are trained beside it.
        use_dora: learn magnitude and direction apart (DoRA).
        load_in_4bit: hold the base in four bits (QLoRA); needs bitsandbytes.
        merge_adapter: save the model with the adapter merged in too, in output_dir/merged.
    """

    model_name_or_path: str
    tokenizer_path: str | None = None
    load_optimizer: bool = False
    vision_model: str | None = None
    attn_implementation: str | None = None
    lora_r: int | None = None
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: list | str | None = None
    lora_modules_to_save: list | None = None
    trainable_token_indices: list | None = None
    use_dora: bool = False
    load_in_4bit: bool = False
    merge_adapter: bool = False

    def __post_init__(self):
        if self.lora_r is None:
            idle = [name for name in _changed(self) if "lora" in name or name in ADAPTER_KEYS]
            if idle:
                raise RecipeError(f"{', '.join(idle)} has no effect without an adapter. Set lora_r, its rank, to 16 for example.")
        elif self.lora_r < 1:
            raise RecipeError(f"lora_r is {self.lora_r}; it must be at least 1.")
        if self.load_optimizer and self.lora_r is not None:
            raise RecipeError("load_optimizer has nothing to load for an adapter, which pretraining did not have. Leave it out.")
        if self.vision_model is not None and (self.load_optimizer or self.lora_r is not None):
            other = "load_optimizer" if self.load_optimizer else "lora_r"
            raise RecipeError(f"vision_model adds weights that {other} knows nothing of. Leave one of them out.")
        if self.merge_adapter and self.load_in_4bit:
            raise RecipeError("merge_adapter cannot merge into a base of four bits. Leave one of merge_adapter and load_in_4bit out.")


@dataclass
class DataArguments:
    """What to train on and how conversations become batches.

    Args:
        train_mixture: list of entries, {task: GSM8K, split: train, repeat: 2} or {path: my.jsonl}.
        eval_mixture: the same, for the validation loss.
        data_root: folder of local task data, in place of the Hub.
        mixture_order: "shuffled", nanochat's order, or "sequence", one entry after the other.
        on_bad_row: "error" lists the rows that cannot be trained on and ends, "skip" lists them and leaves them out.
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
    on_bad_row: str = "error"
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
        _check_choice("mixture_order", self.mixture_order, ("shuffled", "sequence"))
        _check_choice("on_bad_row", self.on_bad_row, ("error", "skip"))
        for name in ("max_length", "target_examples_per_step", "total_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; it must be at least 1.")


@dataclass
class RunArguments:
    """What every kind of training takes: nanochat's optimizer and schedule, and tasks to score. A base beside TrainingArguments.

    Args:
        optimizer: muon_2025, muon_2026 or adamw.
        matrix_lr: rate of the matrices.
        embedding_lr: rate of the embedding, scaled by (width / 768) ** -0.5; value embeddings get half of it.
        unembedding_lr: rate of the head, scaled likewise.
        lora_optimizer: the optimizer of an adapter in place of `optimizer`; Muon only if asked for here.
        scalar_lr: rate of the 2026 scalars; norms and biases of other models, and magnitudes of DoRA, get 0.01 of it.
        vision_lr: rate of the projector between a vision encoder and the model, which init_lr_frac leaves as it is.
        init_lr_frac: factor on every other rate.
        warmdown_ratio: share of the updates over which the rates fall; 1 is nanochat's linear decay of 2025.
        final_lr_frac: what the rates fall to.
        muon_precision: "bfloat16" or "float32" for Muon's matrix products; by default bfloat16 on a GPU.
        eval_tasks: tasks to score during training, by name; nanochat's are [MMLU, ARC-Easy].
        eval_metrics_every: updates between these scores; there are some before the first and after the last update too.
        eval_max_problems: problems per task, a number or {categorical: N, generative: M}; null is all.
    """

    optimizer: str = "muon_2025"
    lora_optimizer: str = "adamw"
    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    scalar_lr: float = 0.5
    vision_lr: float = 0.001
    init_lr_frac: float = 1.0
    warmdown_ratio: float = 1.0
    final_lr_frac: float = 0.0
    muon_precision: str | None = None
    eval_tasks: list | None = None
    eval_metrics_every: int = 200
    eval_max_problems: int | dict | None = field(default_factory=lambda: {"categorical": 1024, "generative": 64})
    # nanochat neither clips gradients nor hides a NaN.
    max_grad_norm: float = 0.0
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    ddp_find_unused_parameters: bool | None = False
    num_train_epochs: float = 1.0
    logging_steps: float = 1
    report_to: str | list[str] | None = "none"
    save_strategy: str = "no"
    resume_from_checkpoint: str | bool | None = None

    def __post_init__(self):
        if self.bf16 and not self.use_cpu and not torch.accelerator.is_available():
            raise RecipeError("bf16 is set, but there is no GPU here. To train on the CPU, set bf16: false and use_cpu: true.")
        _check_output_dir(self.output_dir)
        super().__post_init__()
        if self.dataloader_num_workers and self.dataloader_multiprocessing_context is None:
            self.dataloader_multiprocessing_context = _safe_start_method()
        _check_loggers(self.report_to)
        _check_numbers(self)
        _check_choice("optimizer", self.optimizer, ("muon_2025", "muon_2026", "adamw"))
        _check_choice("lora_optimizer", self.lora_optimizer, ("muon_2025", "muon_2026", "adamw"))
        _check_eval_tasks(self)
        if self.push_to_hub:
            _check_hub(self)

    @property
    def recomputes_layers(self) -> bool:
        """Tell whether layers run again in the backward pass; transformers renamed the setting after 5.17."""
        return bool(getattr(self, "activation_checkpointing", None) or self.gradient_checkpointing)

    @property
    def is_sharded(self) -> bool:
        """Tell whether FSDP or DeepSpeed is going to share the weights out."""
        return is_launched_with("FSDP") or is_launched_with("DEEPSPEED") or bool(self.fsdp or self.deepspeed)

    @property
    def device(self) -> torch.device:
        """Name the CPU without a number: "cpu:0", as several processes have it, is where transformers 5.17 cannot load a checkpoint to."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def n_gpu(self) -> int:
        """Use one GPU per process: DataParallel would cut packed rows apart. `accelerate launch` takes the others."""
        return min(super().n_gpu, 1)


@dataclass
class ChatArguments(RunArguments, TrainingArguments):
    """transformers' TrainingArguments, with nanochat's optimizer and the defaults that sameness with nanochat needs.

    Args:
        loss_average: "token", over the supervised tokens of a step, or "micro_batch", nanochat's mean of means.
        torch_compile: compile the layers for training (Trainer itself would compile the whole model, evaluation included).
        compile_scope: what torch_compile takes at a time: "layer", quick to compile at every depth; "stack", all layers as one, which
            compiles for longer and spares the host a little in each step; or "step", layers whose forward and backward pass are then
            captured as one CUDA graph, which leaves the host almost nothing to do: for small models, on one GPU.
        activation_memory_budget: with torch_compile, the share of the activations that is kept for the backward pass; below 1 the cheap
            ones are computed again (docs/benchmarks.md has memory and speed).
        max_skipped_in_a_row: steps in a row that may be left out because of a NaN or for lack of memory before the run ends.
        dry_run: print the plan (rows, updates, memory, time) and stop before training.
        gpu_hour_price: what an hour of a GPU costs, for the plan.
    """

    loss_average: str = "token"
    max_skipped_in_a_row: int = 10
    dry_run: bool = False
    gpu_hour_price: float | None = None
    compile_scope: str = "layer"
    activation_memory_budget: float = 1.0
    # The mixture is shuffled already.
    train_sampling_strategy: str = "sequential"
    ddp_broadcast_buffers: bool | None = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    def __post_init__(self):
        self.compile_layers, self.torch_compile = self.torch_compile, False
        if self.accelerator_config is None and torch.cuda.is_available():  # batches go to the GPU while it works on the one before
            self.accelerator_config = {"non_blocking": True}
        super().__post_init__()
        _check_choice("loss_average", self.loss_average, ("token", "micro_batch"))
        _check_choice("compile_scope", self.compile_scope, ("layer", "stack", "step"))
        if self.compile_scope == "step" and self.recomputes_layers:
            raise RecipeError(
                "compile_scope is 'step', but a CUDA graph cannot hold layers that are computed again. Set activation_memory_budget below "
                "1 in place of gradient_checkpointing."
            )
        if not 0 <= self.activation_memory_budget <= 1:
            raise RecipeError(f"activation_memory_budget is {self.activation_memory_budget}; it is a share, from 0 to 1.")
        if self.label_smoothing_factor:
            raise RecipeError("label_smoothing_factor is set, but the loss on trained positions is not smoothed. Leave it out.")


def is_launched_with(engine: str) -> bool:
    """Tell whether `accelerate launch` was configured with FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true"


def optimizer_key(is_adapter: bool) -> str:
    """Return which key names the optimizer."""
    return "lora_optimizer" if is_adapter else "optimizer"


def check_deepspeed(key: str, optimizer: str) -> None:
    """Refuse Muon under DeepSpeed, whose ZeRO hands the optimizer flat pieces of the parameters, before anything is loaded."""
    if optimizer != "adamw":
        raise RecipeError(
            f"{key} is {optimizer!r}, but DeepSpeed's ZeRO flattens the parameters and Muon needs whole matrices. "
            f"Set {key}: adamw, or launch with accelerate_configs/ddp.yaml or fsdp2.yaml, under which Muon's state is shared out too."
        )


def _changed(arguments: ModelArguments) -> list[str]:
    """List the settings that are not at their defaults."""
    return [entry.name for entry in fields(arguments) if getattr(arguments, entry.name) != entry.default]


def _safe_start_method() -> str:
    """Start the data loader's workers from a process without threads.

    A fork copies whatever locks CUDA, NCCL and the compiler hold in their threads at that moment, and nobody releases the copies: now and
    then, in one of very many starts, a worker waits for ever, and with it the run.
    """
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _check_hub(args: RunArguments) -> None:
    """Find out before hours of training what the upload at their end would lack."""
    if args.hub_model_id is None:
        raise RecipeError("push_to_hub is set, but not where to. Set hub_model_id to a name on the Hub, as you/your-model.")
    if constants.HF_HUB_OFFLINE:
        raise RecipeError("push_to_hub is set, but HF_HUB_OFFLINE keeps this process off the Hub. Unset one of them.")
    if args.hub_token is not None:  # Trainer uploads its arguments, so the token goes another way
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if get_token() is None:
        raise RecipeError("push_to_hub is set, but there is no token to write with. Run hf auth login, set HF_TOKEN, or set hub_token.")


def _check_output_dir(name: str | None) -> None:
    """See before anything is loaded that the folder can be made."""
    if name == "":
        raise RecipeError("output_dir is ''. Name a folder.")
    in_the_way = [str(path) for path in (Path(name or "."), *Path(name or ".").parents) if path.is_file()]
    if in_the_way:
        raise RecipeError(f"output_dir is {name!r}, but {in_the_way[0]} is a file. Name a folder.")


def _check_loggers(names: Sequence[str]) -> None:
    missing = sorted(set(names) & INTEGRATION_TO_CALLBACK.keys() - set(get_available_reporting_integrations()))
    if missing:
        raise RecipeError(f"report_to has {missing[0]}, which is not installed here. Install it, or leave it out.")


def _check_numbers(args: RunArguments) -> None:
    rates = ("matrix_lr", "embedding_lr", "unembedding_lr", "scalar_lr", "vision_lr", "init_lr_frac", "final_lr_frac")
    for name in (*rates, "num_train_epochs"):
        if vars(args)[name] < 0:
            raise RecipeError(f"{name} is {vars(args)[name]}; it must be at least 0.")
    if not 0 <= args.warmdown_ratio <= 1:
        raise RecipeError(f"warmdown_ratio is {args.warmdown_ratio}; it is a share of the updates, from 0 to 1.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if vars(args)[name] < 1:
            raise RecipeError(f"{name} is {vars(args)[name]}; it must be at least 1.")


def _check_eval_tasks(args: RunArguments) -> None:
    if args.eval_tasks is not None and not (args.eval_tasks and all(isinstance(name, str) for name in args.eval_tasks)):
        raise RecipeError(f"eval_tasks is {args.eval_tasks!r}; it is a list of task names, as [MMLU, ARC-Easy].")
    if args.eval_metrics_every < 1:
        raise RecipeError(f"eval_metrics_every is {args.eval_metrics_every}; it must be at least 1.")
    limits = args.eval_max_problems
    limits = limits if isinstance(limits, dict) else {} if limits is None else {"categorical": limits, "generative": limits}
    is_known = limits.keys() <= {"categorical", "generative"}
    if not is_known or not all(isinstance(limit, int) and limit > 0 for limit in limits.values()):
        raise RecipeError(
            f"eval_max_problems is {args.eval_max_problems!r}; it may be a number of at least 1, or {{categorical: 1024, generative: 64}}."
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is {value!r}; it may be {', '.join(choices)}.")
