"""A training run small enough to be repeated many times, and faults to put into it."""

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from chatsft.arguments import ChatArguments
from chatsft.data.collator import PaddingCollator
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.nanochat_origin import NOTHING
from chatsft.optim.schedule import lr_multiplier
from chatsft.trainer import ChatTrainer

VOCABULARY = 64


def build_model(generation: int = 2025) -> GPTForCausalLM:
    torch.manual_seed(7)
    later = {
        "rope_theta": 100000.0,
        "query_key_scale": 1.2,
        "layer_windows": [9, 17],
        "value_embedding_layers": [1],
        "residual_scaling": True,
        "smear": True,
        "backout": True,
    }
    config = GPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        **(later if generation == 2026 else {}),
    )
    model = GPTForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def build_rows(number: int) -> list[dict]:
    """Rows of four to twelve tokens, the second half of each trained."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(number):
        ids = torch.randint(0, VOCABULARY, (4 + index % 9,), generator=generator).numpy()
        labels = ids.copy()
        labels[: len(ids) // 2] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def build_trainer(
    output_dir: Path,
    rows: list[dict],
    *,
    trainer_class: type = ChatTrainer,
    eval_rows: list[dict] | None = None,
    skipped_updates: tuple = (),
    generation: int = 2025,
    **settings,
) -> ChatTrainer:
    """Make a trainer of two rows a micro-batch and two micro-batches a step.

    Args:
        skipped_updates: places in the schedule that no update of this run takes, as if other rows had been there and been left out.
    """
    settings = {
        "max_steps": 6,
        "use_cpu": True,
        "optimizer": f"muon_{generation}",
        "muon_precision": "float32",
        "gradient_accumulation_steps": 2,
    } | settings
    planned_steps = settings["max_steps"] + len(skipped_updates)
    args = ChatArguments(output_dir=output_dir, per_device_train_batch_size=2, disable_tqdm=True, embedding_lr=0.01, **settings)
    datasets = {"train_dataset": rows, "eval_dataset": eval_rows}
    trainer = trainer_class(model=build_model(generation), args=args, data_collator=PaddingCollator(0), **datasets)
    trainer.origin = NOTHING
    if skipped_updates:
        places = [place for place in range(planned_steps + 1) if place not in skipped_updates]
        trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda update: lr_multiplier(places[update] / planned_steps))
    return trainer


class Backward(torch.autograd.Function):
    """Pass a loss through, and do something else to its gradient."""

    @staticmethod
    def forward(context, loss, harm):
        context.harm = harm
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return context.harm(gradient), None


def ask_for_too_much(*_) -> None:
    torch.empty(2**50, dtype=torch.uint8, device="cuda")


def run_out_of_memory(*_) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


HARMS = {
    "nan loss": lambda loss: loss * float("nan"),
    "infinite loss": lambda loss: loss * float("inf"),
    "nan gradient": lambda loss: Backward.apply(loss, lambda gradient: gradient * float("nan")),
    "no memory forward": run_out_of_memory,
    "no GPU memory forward": ask_for_too_much,
    "no GPU memory backward": lambda loss: Backward.apply(loss, ask_for_too_much),
    "no memory backward": lambda loss: Backward.apply(loss, run_out_of_memory),
}


class FaultyTrainer(ChatTrainer):
    """Meet faults at given (step, micro-batch, process)."""

    faults: dict[tuple[int, int, int], str]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        place = (self.state.global_step, self.micro_batch, self.args.process_index)
        self.micro_batch += 1
        if self.faults.get(place) == "no memory midway":
            weight = self.model.model.layers[1].mlp.up_proj.weight  # when its gradient is there, those of the head are too
            hook = weight.register_hook(lambda _: (hook.remove(), run_out_of_memory()))
            return loss
        return HARMS[self.faults[place]](loss) if place in self.faults else loss

    def get_batch_samples(self, *args):
        self.micro_batch = 0
        return super().get_batch_samples(*args)


def losses(trainer: ChatTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def skipped(trainer: ChatTrainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "skipped_step" in log]


def everything_that_an_update_changes(trainer: ChatTrainer) -> list[torch.Tensor]:
    """Weights, and the optimizer's momenta and counters, as far as this process has them."""
    optimizer, parameters = trainer.optimizer.optimizer, list(trainer.model.parameters())
    momenta = [torch.as_tensor(value) for parameter in parameters for value in optimizer.state[parameter].values()]
    counters = [torch.as_tensor(group["num_steps"]) for group in optimizer.param_groups if "num_steps" in group]
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in [*parameters, *momenta, *counters]]
