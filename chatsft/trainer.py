"""ChatTrainer: transformers' Trainer with nanochat's optimizer, schedule and loss."""

import logging
import math
from functools import partial

import torch
from accelerate.utils.modeling import is_peft_model
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from chatsft.arguments import ChatArguments
from chatsft.captured_step import CapturedStep
from chatsft.guarded_trainer import GuardedTrainer
from chatsft.model.head import GPTHead
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.nanochat_training import NanochatTraining
from chatsft.throughput import ThroughputMeter

logger = logging.getLogger(__name__)


class ChatTrainer(NanochatTraining, GuardedTrainer):
    """Train a chat model as nanochat does.

    Takes what Trainer takes but `optimizers`, with `ChatArguments`. Batches come from the collators of chatsft.data: `labels`
    have -100 on the first token of every conversation, and `num_tokens` counts the real tokens.

    The loss is averaged over the supervised tokens of the whole optimizer step, over all micro-batches and processes
    (`loss_average: token`), or per micro-batch and then over these, as nanochat does (`micro_batch`). A micro-batch without
    supervised tokens counts as zero.

    A step with a NaN, or one that does not fit in memory, is left out on every process (GuardedTrainer); a run killed at any moment goes
    on from its last checkpoint as if nothing had happened (ResumableTrainer).
    """

    args: ChatArguments

    def __init__(self, *args, eval_data_collator=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_data_collator = eval_data_collator or self.data_collator
        self.throughput = ThroughputMeter(self.model, self.args.world_size)
        base = without_adapter(self.model)
        self.skips_logits = can_skip_logits(self.model)
        if not self.model_accepts_loss_kwargs:
            raise ValueError(f"{type(base).__name__} takes no num_items_in_batch, without which the loss cannot be averaged over a step.")
        if self.args.compile_scope == "stack" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "compile_scope is 'stack', but FSDP2 and DeepSpeed gather the weights of each layer around it. Set it to 'layer'."
            )
        if self.args.compile_layers and isinstance(base, GPTForCausalLM):
            base.model.compile_layers(self.args.compile_scope == "stack", self.args.activation_memory_budget)
        elif self.args.compile_layers:
            logger.warning("torch_compile compiles the layers of chatsft's own models; %s runs as it is", type(base).__name__)
        self.captured = self._captured_step() if self.args.compile_layers and self.args.compile_scope == "step" else None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = sharded_precision(self.accelerator.mixed_precision)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Take the micro-batches of one optimizer step, and what their loss is divided by."""
        batches, supervised_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = sum(batch.pop("num_tokens") for batch in batches)
        self.throughput.tokens += tokens
        self.step_log.tokens += tokens
        average_tokens = supervised_tokens is not None and self.args.loss_average == "token"
        return batches, supervised_tokens.clamp(min=1) if average_tokens else None

    def train(self, *args, **kwargs):
        self.throughput.restart()
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.captured is not None:
                self.captured.release()

    def compute_micro_batch(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.captured is None:
            return super().compute_micro_batch(model, inputs, num_items_in_batch)
        return self.captured(self._prepare_inputs(inputs), num_items_in_batch, self.current_gradient_accumulation_steps)

    def _captured_step(self) -> CapturedStep | None:
        """Capture micro-batches where nothing but their values changes from one to the next."""
        if self.args.device.type == "cuda" and self.args.world_size == 1 and type(without_adapter(self.model)) is GPTForCausalLM:
            compute = partial(super().compute_micro_batch, self.model)
            return CapturedStep(compute, [param for param in self.model.parameters() if param.requires_grad])
        logger.warning(
            "compile_scope 'step' captures chatsft's text models on one GPU; here the layers are compiled and nothing is captured"
        )
        return None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss on supervised positions alone where the model knows how: our own, with a plain head."""
        alone = {"skip_logits": True, "use_cache": False}
        inputs = {**inputs, **alone} if self.skips_logits else plain_inputs(inputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Read another model's weights back as from_pretrained does: some rename them on saving, and Trainer would leave those out."""
        target = self.model if model is None else model
        if not self._may_rename_weights(target):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype).state_dict())

    def _load_best_model(self) -> None:
        """Read the best weights back in the same way."""
        if self._may_rename_weights(self.model):
            return self._load_from_checkpoint(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _may_rename_weights(self, model: nn.Module) -> bool:
        is_plain = isinstance(model, PreTrainedModel) and not isinstance(model, GPTForCausalLM)
        return is_plain and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _get_grad_norm(self, model, grad_norm=None):
        """Leave out the norm that Trainer takes of all gradients at every step where nothing is clipped."""
        return None if self.args.max_grad_norm == 0 else super()._get_grad_norm(model, grad_norm)

    def floating_point_ops(self, inputs: dict) -> int:
        """Count from what is known: Trainer visits every parameter of the model at every micro-batch."""
        return 6 * self.throughput.matmul_parameters * inputs["input_ids"].numel()

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        train_collator, self.data_collator = self.data_collator, self.eval_data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Compute the validation loss without ever forming logits.

        Returns:
            `eval_loss`, the mean over batches of each batch's mean token loss, which is nanochat's measure and Trainer's, and
            `eval_token_loss`, the mean over all supervised tokens, which does not depend on the batch size.
        """
        model = self._wrap_model(self.model, training=False)
        if not self.is_in_train:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        sums = torch.zeros(4, device=self.args.device, dtype=self._sum_dtype)
        for batch in dataloader:
            losses, tokens = self._sum_losses(model, self._prepare_inputs(batch))
            sums += torch.stack([(losses / tokens.clamp(min=1)).sum(), (tokens > 0).sum(), losses.sum(), tokens.sum()])
        batch_losses, batches, token_losses, tokens = self.accelerator.gather(sums[None]).sum(0).tolist()
        self.throughput.restart()
        metrics = {f"{metric_key_prefix}_loss": batch_losses / batches, f"{metric_key_prefix}_token_loss": token_losses / tokens}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=self.num_examples(dataloader))

    def _sum_losses(self, model, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed token losses and the supervised tokens of each row of an EvaluationCollator, or of a padded batch."""
        batch.pop("num_tokens")
        rows = batch.pop("row_ids", None)
        with self.compute_loss_context_manager():
            if rows is None:
                tokens = (batch["labels"] != -100).sum().to(self._sum_dtype)[None]
                return self.compute_loss(model, batch).to(self._sum_dtype) * tokens, tokens
            losses = model(**batch, skip_logits=True, reduce_loss=False, use_cache=False).loss.to(self._sum_dtype)
        sums = losses.new_zeros(2, self.args.eval_batch_size).index_add_(1, rows, torch.stack([losses, torch.ones_like(losses)]))
        return sums[0], sums[1]

    @property
    def _sum_dtype(self) -> torch.dtype:
        return torch.float32 if self.args.device.type == "mps" else torch.float64  # Apple's GPUs have no float64

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if logs.pop("loss", None) is not None:
            logs |= self._step_figures()
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # of a step that was left out
            del logs["grad_norm"]
        super().log(logs, start_time)

    def _step_figures(self) -> dict[str, float]:
        """Return the figures of the updates since the last log: rates as they were in the last of them."""
        multiplier = self.lr_scheduler.lr_lambdas[0](max(self.lr_scheduler.last_epoch - 1, 0))
        rates = {f"lr_{group['name']}": group["initial_lr"] * multiplier for group in self.optimizer.param_groups}
        return self.step_log.read(self.accelerator, self.is_sharded) | {"lr_multiplier": multiplier} | self.throughput.read() | rates


def can_skip_logits(model: nn.Module) -> bool:
    """Tell whether a model computes the loss on supervised positions alone: ours do, as long as their head is a plain one."""
    base = without_adapter(model)
    return isinstance(base, GPTForCausalLM) and isinstance(base.lm_head, GPTHead)


def without_adapter(model: nn.Module) -> nn.Module:
    """Return the base of an adapter, and any other model as it is."""
    return model.get_base_model() if is_peft_model(model) else model


def sharded_precision(mixed_precision: str) -> MixedPrecisionPolicy:
    """Return what FSDP2 computes in, as autocast would: weights in half, but rotary tables, loss and sums of gradients in float32."""
    if mixed_precision == "no":
        return MixedPrecisionPolicy()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def plain_inputs(inputs: dict, num_items_in_batch: torch.Tensor | None) -> dict:
    """Make a batch fit any causal language model: without what only ours takes, without a cache (packed conversations would see each
    other through it), and with a divisor of the loss that is not 0.
    """
    plain = {name: value for name, value in inputs.items() if name != "supervised_positions"} | {"use_cache": False}
    if num_items_in_batch is None:
        plain["num_items_in_batch"] = (inputs["labels"] != -100).sum().clamp(min=1)
    return plain
