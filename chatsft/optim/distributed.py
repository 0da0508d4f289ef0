"""How processes share the work and the state of Muon.

Muon needs whole matrices, and orthogonalizing one twice is work lost. So each matrix has one owner among the processes, chosen so that
all are done at the same time, and only the owner orthogonalizes it. What moves depends on where the matrices lie:

- DDP: every process holds every matrix and its gradient. The owner alone keeps a matrix's momentum and updates it; then the new matrices
  are gathered, while the owners work on the next ones.
- FSDP2: every process holds some rows of every matrix, of its gradient and of its momentum. The rows are brought together at the owner,
  and the rows of the result go back.

An exchange does this for matrices of one shape. `mine` are the parameters whose state this process keeps. `to_owners` turns a stack of
what it holds of them into the stack of whole matrices that it orthogonalizes, and `to_holders` turns such a stack back. `publish` starts
to send what the other processes need, and `finish` takes over what they sent.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard, zeros


class Alone:
    """One process holds and steps every matrix."""

    def __init__(self, params: Sequence[Tensor]):
        self.mine = params

    def to_owners(self, held: Tensor, rows: int) -> Tensor:
        return held

    def to_holders(self, whole: Tensor, rows: int) -> Tensor:
        return whole

    def publish(self) -> None:
        pass

    def finish(self) -> None:
        pass


class Replicated(Alone):
    """Every process holds every matrix (DDP) and steps those it owns."""

    def __init__(self, params: Sequence[Tensor], owners: Sequence[int], group: ProcessGroup):
        self.group, self.gathered, self.work = group, None, None
        self.owned = [[param for param, owner in zip(params, owners, strict=True) if owner == rank] for rank in range(group.size())]
        super().__init__(self.owned[group.rank()])

    def publish(self) -> None:
        """Start to gather the new matrices, all at once; those that own fewer fill up with what nobody reads."""
        some, most = next(filter(None, self.owned))[0], max(map(len, self.owned))
        self.gathered = some.new_empty(self.group.size(), most, *some.shape)
        sent = self.gathered[self.group.rank()]
        if self.mine:
            torch._foreach_copy_(list(sent[: len(self.mine)]), self.mine)
        self.work = self.group.allgather_into_tensor_coalesced([self.gathered.flatten(0, 1)], [sent])

    def finish(self) -> None:
        """Take over what the others own."""
        self.work.wait()
        for rank, params in enumerate(self.owned):
            if params and rank != self.group.rank():
                torch._foreach_copy_(params, list(self.gathered[rank, : len(params)]))
        self.gathered = None


class Sharded(Alone):
    """Every process holds some rows of every matrix (FSDP2): (n, its rows, columns) of what are `rows` rows in all."""

    def __init__(self, params: Sequence[DTensor], owners: Sequence[int]):
        by_owner = sorted(range(len(params)), key=lambda index: owners[index])
        super().__init__([params[index] for index in by_owner])
        mesh, dimension = params[0].device_mesh, sharded_dimension(params[0])
        self.group, self.rank, processes = mesh.get_group(dimension), mesh.get_local_rank(dimension), mesh.size(dimension)
        self.counts = [owners.count(process) for process in range(processes)]

    def to_owners(self, held: Tensor, rows: int) -> Tensor:
        heights, columns, mine = shard_heights(rows, len(self.counts)), held.shape[-1], self.counts[self.rank]
        sizes = [count * heights[self.rank] * columns for count in self.counts]
        received_sizes = [mine * height * columns for height in heights]
        parts = self._exchange(held, sizes, received_sizes).split(received_sizes)
        return torch.cat([part.view(mine, height, columns) for part, height in zip(parts, heights, strict=True)], dim=1)

    def to_holders(self, whole: Tensor, rows: int) -> Tensor:
        heights, columns, mine = shard_heights(rows, len(self.counts)), whole.shape[-1], self.counts[self.rank]
        sent = torch.cat([part.flatten() for part in whole.split(heights, dim=1)])
        received_sizes = [count * heights[self.rank] * columns for count in self.counts]
        received = self._exchange(sent, [mine * height * columns for height in heights], received_sizes)
        return received.view(sum(self.counts), heights[self.rank], columns)

    def _exchange(self, sent: Tensor, sizes: list[int], received_sizes: list[int]) -> Tensor:
        received = sent.new_empty(sum(received_sizes))
        dist.all_to_all_single(received, sent.flatten(), received_sizes, sizes, group=self.group)
        return received


def exchange_between(params: Sequence[Tensor], owners: Sequence[int], group: ProcessGroup | None) -> Alone:
    """Choose how matrices of one shape are shared: by what they are, and by whether there are other processes."""
    if isinstance(params[0], DTensor):
        return Sharded(params, owners)
    return Alone(params) if group is None else Replicated(params, owners, group)


def num_processes(param: Tensor, group: ProcessGroup | None) -> int:
    """Count the processes between which a matrix can be given away."""
    if isinstance(param, DTensor):
        return param.device_mesh.size(sharded_dimension(param))
    return 1 if group is None else group.size()


@cache
def assign_owners(shapes: tuple[tuple[int, int], ...], processes: int) -> tuple[int, ...]:
    """Give each matrix to a process, the costliest first and always to the one with the least to do.

    The cost of orthogonalizing (m, n) with m <= n is that of its products, 4 m^2 n + 2 m^3 a step.

    >>> assign_owners(((8, 8), (8, 32), (8, 8), (8, 8), (8, 8)), 2)
    (1, 0, 1, 1, 0)
    """
    costs = [4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3 for shape in shapes]
    loads, owners = [0] * processes, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: -costs[index]):
        owners[index] = min(range(processes), key=lambda process: loads[process])
        loads[owners[index]] += costs[index]
    return tuple(owners)


def sharded_dimension(param: DTensor) -> int:
    """Return the mesh dimension over which FSDP2 spread the rows; others may hold copies (HSDP)."""
    dimensions = [index for index, placement in enumerate(param.placements) if not placement.is_replicate()]
    if len(dimensions) != 1 or param.placements[dimensions[0]] != Shard(0):
        raise ValueError(f"a matrix is placed as {param.placements}, but Muon takes rows over one mesh dimension, as fully_shard does.")
    return dimensions[0]


def shard_heights(rows: int, processes: int) -> list[int]:
    """Return how many rows each process holds.

    >>> shard_heights(5, 4)
    [2, 2, 1, 0]
    """
    height = -(-rows // processes)
    return [max(0, min(height, rows - rank * height)) for rank in range(processes)]


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def zeros_beside(param: Tensor, shape: tuple[int, int]) -> Tensor:
    """Make a state of zeros for a parameter; of a sharded one it is spread along its longer side over the same processes."""
    if not isinstance(param, DTensor):
        return param.new_zeros(shape)
    placements = list(param.placements)
    placements[sharded_dimension(param)] = Shard(0 if shape[0] >= shape[1] else 1)
    return zeros(shape, dtype=param.dtype, device_mesh=param.device_mesh, placements=placements)


def gather_states(
    states: dict[int, dict[str, Tensor]], group: ProcessGroup, device: torch.device, keep: bool
) -> dict[int, dict[str, Tensor]]:
    """Collect the states that the other processes keep, by number of the parameter, in the host's memory.

    Every process of the group has to call this, those that do not need the result with keep=False.
    """
    contents = [None] * group.size()
    dist.all_gather_object(contents, {i: {k: (v.shape, v.dtype) for k, v in state.items()} for i, state in states.items()}, group=group)
    gathered = {}
    for rank, content in enumerate(contents):
        entries = [(index, key, *form) for index, forms in content.items() for key, form in forms.items()]
        for index, key, shape, dtype in entries:
            tensor = states[index][key] if rank == group.rank() else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(tensor, group=group, group_src=rank)
            if keep and rank != group.rank():
                gathered.setdefault(index, {})[key] = tensor.cpu()
    return gathered
