"""Faults in a batch: a step that met one is made on no process, and no process waits for another.

Whatever happens to a process in its micro-batches, it takes part in averaging the gradients (`gradients.py`). Then the processes exchange
one number each, and all of them make the step or none does. The device decides: the optimizer is handed the verdict as `found_inf`, as
torch's GradScaler hands it over, and its kernels leave weights, momenta and counters as they are. The host reads the verdict while the
device is at work on the next step, so that nobody waits.
"""

import logging
import os
import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

logger = logging.getLogger(__name__)

LOSS, GRADIENT, MEMORY, STOP = 1, 2, 4, 8
FAULTS = {LOSS: "a loss that is not finite", GRADIENT: "a gradient that is not finite", MEMORY: "out of memory"}


class TrainingFault(RuntimeError):
    """A run that cannot go on, with the reason and how to resume it."""


class StepGuard:
    """Watch over the micro-batches of one optimizer step after another.

    Args:
        can_drop: whether a step can be dropped; not where gradients are scaled (fp16: GradScaler does it) or DeepSpeed holds them.
        is_sharded: whether forward and backward wait for other processes, so that running out of memory cannot be healed.
    """

    def __init__(self, accelerator: Accelerator, can_drop: bool, is_sharded: bool):
        self.accelerator, self.can_drop, self.is_sharded = accelerator, can_drop, is_sharded
        self.begin_step()

    def begin_step(self) -> None:
        self.loss = torch.zeros((), device=self.accelerator.device)
        self.is_out_of_memory = False

    def attempt(self, compute: Callable[[], Tensor]) -> None:
        """Run forward and backward of a micro-batch and add its loss; after one that did not fit, the rest of the step is left out."""
        if self.is_out_of_memory:
            return
        try:
            self.loss = self.loss + compute()
            return
        except (RuntimeError, MemoryError) as error:
            if not self.can_drop or not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # here, outside the except clause, nothing holds the traceback and with it the activations
        if self.is_sharded and self.accelerator.num_processes > 1:
            end_process(reason)
        self.is_out_of_memory = True
        clear_device_cache(garbage_collection=True)
        logger.warning("out of memory on process %d: %s", self.accelerator.process_index, reason)

    def agree(self, norms: dict[str, Tensor], is_stopping: bool) -> "Agreement":
        """Exchange what each process met."""
        met = torch.zeros(1, dtype=torch.long, device=self.accelerator.device)
        met += MEMORY * self.is_out_of_memory + STOP * is_stopping
        if self.can_drop:
            met += LOSS * ~self.loss.isfinite()
        if self.can_drop and norms:
            met += GRADIENT * ~torch.stack(list(norms.values())).isfinite().all()
        return Agreement(self.accelerator.gather(met))


class Agreement:
    """What each process met in a step, as bits of LOSS, GRADIENT, MEMORY and STOP; begins its way to the host when made.

    Attributes:
        is_faulty: 1.0 where any process met a fault and 0.0 otherwise, (), float32, on the device.
    """

    def __init__(self, met: Tensor):
        self.is_faulty = (met & sum(FAULTS)).any().float()
        self.met, self.arrival = met, None
        if met.is_cuda:
            self.met, self.arrival = met.to("cpu", non_blocking=True), torch.cuda.Event()
            self.arrival.record()

    def read(self) -> list[int]:
        """Return the bits by process; wait until they have arrived, but for nothing that the device was given to do later."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.met.tolist()


def faults_by_process(met: list[int]) -> dict[int, str]:
    """Put what the processes met into words; a gradient that is not finite is named only where no loss explains it.

    >>> faults_by_process([GRADIENT, LOSS + GRADIENT, GRADIENT])  # averaged, the gradients are the same on all
    {1: 'a loss that is not finite'}
    """
    causes = [bit for bit in FAULTS if any(bits & bit for bits in met)]
    causes = [bit for bit in causes if bit != GRADIENT] or causes
    return {process: FAULTS[bit] for bit in causes for process, bits in enumerate(met) if bits & bit}


def describe_faults(found: dict[int, str], num_processes: int) -> str:
    """Write what `faults_by_process` found.

    >>> describe_faults({0: "out of memory", 3: "out of memory"}, 4)
    'out of memory on process 0, 3'
    """
    processes = {fault: [process for process, other in found.items() if other == fault] for fault in found.values()}
    return ", ".join(
        f"{fault} on {'every process' if len(where) == num_processes > 1 else 'process ' + ', '.join(map(str, where))}"
        for fault, where in processes.items()
    )


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def end_process(reason: str) -> None:
    """Leave at once: the others wait in a collective that this process will not join, and the launcher ends them when it has left.

    An ordinary exit would first wait for the process group, which waits for the others.
    """
    print(
        f"error: out of memory in a step whose model is sharded over processes ({reason}). The others wait for this process, so the step "
        "cannot be left out. Lower per_device_train_batch_size, and go on from the last checkpoint with resume_from_checkpoint=true.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
