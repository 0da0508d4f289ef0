"""Two processes with a sharded model, one of which runs out of memory: `torchrun --nproc_per_node 2 -m tests.sharded_out_of_memory`.

On two GPUs where there are as many, otherwise on the CPU.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard

from chatsft.faults import StepGuard
from chatsft.stopping import StopSignal
from tests.tiny_training import run_out_of_memory


def main() -> None:
    accelerator = Accelerator(cpu=torch.cuda.device_count() < 2)
    guard = StepGuard(accelerator, can_drop=True, is_sharded=True)
    model = fully_shard(nn.Linear(8, 8, device=accelerator.device))
    with StopSignal():  # as in training, where SIGTERM alone ends nobody
        guard.attempt(run_out_of_memory if dist.get_rank() == 1 else lambda: model(torch.ones(1, 8, device=accelerator.device)).sum())
        dist.barrier()


if __name__ == "__main__":
    main()
