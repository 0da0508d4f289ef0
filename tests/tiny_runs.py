"""Training runs small enough to be repeated on one process, on two, and sharded over two."""

import random
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.distributed.tensor import DTensor

from chatsft.arguments import ChatArguments, DataArguments
from chatsft.batches import plan_batches
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.packed_attention import prepare_attention
from chatsft.trainer import ChatTrainer

VOCABULARY, STEPS, EXAMPLES = 96, 20, 8
LATER = {
    "rope_theta": 100000.0,
    "query_key_scale": 1.2,
    "layer_windows": [9, 9, 33],
    "value_embedding_layers": [0, 2],
    "residual_scaling": True,
    "smear": True,
    "backout": True,
}


class Run(NamedTuple):
    """What a run came to: the loss of every step, and the weights before and after."""

    losses: list[float]
    start: dict[str, torch.Tensor]
    end: dict[str, torch.Tensor]
    trainer: ChatTrainer | None = None


class ShardedTrainer(ChatTrainer):
    """ChatTrainer under FSDP2 on CPUs, into which accelerate never enters by itself; from there on everything is its own path."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state, self.is_fsdp_enabled = self.accelerator.state, True
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False
        )


def build_model(generation: str, seed: int = 0) -> GPTForCausalLM:
    """Build three layers whose matrices come in odd numbers and odd heights, with no weight at zero."""
    config = GPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=77,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **(LATER if generation == "2026" else {}),
    )
    model, generator = GPTForCausalLM(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.2, generator=generator)
    return model


def conversations(count: int) -> Dataset:
    """Make conversations of random tokens and lengths, of which the second half is trained; now and then none of it is."""
    numbers, rows = random.Random(0), {"input_ids": [], "assistant_masks": []}
    for index in range(count):
        length = numbers.randint(4, 40)
        rows["input_ids"].append([numbers.randrange(VOCABULARY) for _ in range(length)])
        rows["assistant_masks"].append([int(place >= length // 2 and index % 7 != 3) for place in range(length)])
    return Dataset.from_dict(rows)


def train_tiny(
    output_dir: Path, generation: str, packing: bool, sharding: str = "ddp", optimizer: str | None = None, steps: int = STEPS, **settings
) -> Run:
    """Train as the recipe of a tiny model would, on as many processes as there are; rank 0 returns the whole run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    model = build_model(generation)
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    prepare_attention(model, None, packing)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    args = ChatArguments(
        output_dir=str(output_dir),
        optimizer=optimizer or f"muon_{generation}",
        muon_precision="float32",
        matrix_lr=0.02,
        embedding_lr=0.01,
        unembedding_lr=0.004,
        scalar_lr=0.05,
        weight_decay=0.01,  # decays where the step does too: of ten times as much, one rounded sign would be half the tolerance
        init_lr_frac=0.1,
        per_device_train_batch_size=2 // world_size if packing else 4 // world_size,
        max_steps=steps,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    data = DataArguments(train_mixture=[], max_length=64, packing=packing, target_examples_per_step=EXAMPLES)
    rendered = conversations(STEPS * EXAMPLES - 3)
    batches = plan_batches(rendered, data, args.per_device_train_batch_size, args.world_size, 0, args.seed)
    args.gradient_accumulation_steps = batches.gradient_accumulation_steps
    kind = ShardedTrainer if sharding == "fsdp2" else ChatTrainer
    trainer = kind(model=model, args=args, train_dataset=batches.dataset, data_collator=batches.collator)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if sharding == "fsdp2":
        assert all(isinstance(param, DTensor) for param in trainer.model.parameters())
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return Run(losses, start, {name: whole(param) for name, param in trainer.model.named_parameters()}, trainer)


def train_without_trainer(*args, **settings) -> Run:
    """Train and leave out what cannot be sent to another process."""
    return train_tiny(*args, **settings)._replace(trainer=None)


def whole(param: torch.Tensor) -> torch.Tensor:
    return (param.full_tensor() if isinstance(param, DTensor) else param).detach().clone()
