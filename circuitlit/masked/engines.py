"""Frozen weights under engines that others wrote: DeepSpeed's ZeRO-3, or torch's `fully_shard`.

An engine gathers the parameters of a module around that module's forward and backward. Here each piece of the model
(`pieces.py`) is such a module, a `Room`, with its vector of weights as the one parameter. The stock block and the
edge-masked one both run inside their room, so both have their weights from the engine, by its own hooks, prefetched in
its own way. The engine holds frozen weights alone: the masks are no part of it, and it casts nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from circuitlit.masked.forward import MaskedModel
from circuitlit.masked.pieces import Piece, Pieces, cut_up, rank_and_world
from circuitlit.model.weights import WeightSource

SUMS_ON_A_CPU = "deepspeed_shm_comm"  # one of its operators: gloo has them, and compiling it takes minutes


class Room(nn.Module):
    """A piece as an engine sees it: one frozen parameter, and a forward that runs whatever is called in it.

    Args:
        piece: the weights.
        device: where they are gathered.
    """

    flat: nn.Parameter

    def __init__(self, piece: Piece, device: torch.device) -> None:
        super().__init__()
        self.register_parameter("flat", _frozen(torch.empty(piece.total, dtype=piece.dtype, device=device)))
        self._piece = piece

    def hold(self) -> None:
        """Show the gathered weights to the modules."""
        self._piece.point(self.flat)

    def let_go(self) -> None:
        """Hold on to nothing that the engine gathered."""
        self._piece.let_go()

    def forward(self, *tensors: Tensor, call: Callable[..., Any]) -> Any:
        """Run `call(*tensors)` with the weights in place; they will be so in its backward, too.

        Args:
            *tensors: what gradients flow through.
            call: gives a tensor, or a tuple with tensors.
        """
        self.hold()
        left = [len(tensors)]
        made = call(*(_Leave.apply(tensor, self, left) for tensor in tensors))
        if torch._C._current_graph_task_id() == -1:  # else recomputed, by a backward that may be in this very room
            self.let_go()
        outputs = (made,) if isinstance(made, Tensor) else made
        passed = [_Enter.apply(x, self) if isinstance(x, Tensor) and x.requires_grad else x for x in outputs]
        return passed[0] if isinstance(made, Tensor) else tuple(passed)


class _Enter(Function):
    """Behind a room's forward, so ahead of its backward: the engine has gathered by then."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, room: Room) -> Tensor:
        ctx.room = room
        return value.clone()  # no view, on which an engine's hook could be lost; what blocks hand on is a scalar

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.room.hold()
        return grads[0], None


class _Leave(Function):
    """Ahead of a room's forward, so behind its backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, room: Room, left: list[int]) -> Tensor:
        ctx.room, ctx.left = room, left
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.left[0] -= 1
        if ctx.left[0] == 0:
            ctx.room.let_go()
        return grads[0], None, None


def _move_in(module: nn.Module, room: Room) -> None:
    """From now on run a module's forward inside its room."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        through = [place for place, value in enumerate(args) if isinstance(value, Tensor) and value.requires_grad]

        def call(*tensors: Tensor) -> Any:
            given = list(args)
            for place, tensor in zip(through, tensors, strict=True):
                given[place] = tensor
            return own(*given, **kwargs)

        return room(*(args[place] for place in through), call=call)

    module.forward = forward  # type: ignore[method-assign]


class Rooms(nn.Module):
    """All rooms of a model, as the one module that an engine is given."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        super().__init__()
        self.rooms = nn.ModuleList(rooms)

    def forward(self, _here: Tensor) -> None:
        """Nothing: rooms are entered one by one. On a GPU, `fully_shard` needs an argument that it can move there."""


class Engine:
    """What a model's `shards` are under an engine.

    Attributes:
        share: of the weights' bytes, what this process keeps, packed or with filling.
        rooms: all rooms, as the engine has them.
    """

    def __init__(self, share: float, rooms: nn.Module) -> None:
        self.share, self.rooms = share, rooms


def deepspeed_shard(
    model: MaskedModel, device: torch.device, source: WeightSource | None = None, offload: bool = False
) -> None:
    """Hand a model's frozen weights to DeepSpeed's ZeRO-3 engine; every forward is one of all processes from now on.

    Args:
        model: with `recompute=True`; its subject's parameters may be without memory, if there is a source.
        device: this process's.
        source: what the parameters are read from, piece by piece; None takes them from the model.
        offload: True keeps each process's part in the host's memory.
    """
    deepspeed = load_deepspeed(device)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False)
    pieces = cut_up(model, device, source)
    config = _deepspeed_config(pieces, offload, device)
    made, kept = {}, 0
    for piece in pieces.each:
        room = made[id(piece)] = Room(piece, device)
        where = "cpu" if offload and device.type != "cpu" else None
        named = torch.float32 if piece.dtype == torch.float64 else piece.dtype  # it refuses the name, not the weights
        deepspeed.zero.Init(module=room, config_dict_or_path=config, dtype=named, remote_device=where)
        part = room.flat.ds_tensor  # type: ignore[attr-defined]
        part.zero_()
        piece.fill(part, rank_and_world()[0] * part.numel())
        piece.replace(None, device)
        kept += part.numel()
    engine, *_ = deepspeed.initialize(model=Rooms(list(made.values())), config=config)
    coordinator = engine.optimizer.get_param_coordinator()
    furnish(model, pieces, made)
    _tell_steps(model, coordinator.reset_step)
    model.shards = Engine(kept / sum(piece.total for piece in pieces.each), engine)


def load_deepspeed(device: torch.device) -> Any:
    """The library, for this device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # else it takes a GPU where there is one
    os.environ.setdefault("LOCAL_RANK", "0")  # it asks for this in a process that nobody launched, too
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__[SUMS_ON_A_CPU] = False
    return deepspeed


def _deepspeed_config(pieces: Pieces, offload: bool, device: torch.device) -> dict[str, Any]:
    """Everything is shared out, the next piece is prefetched, and a recomputed panel stays until its backward."""
    largest = max(piece.total for piece in pieces.all)
    stage: dict[str, Any] = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": largest,
        "stage3_max_reuse_distance": pieces.panel * largest,
        "stage3_max_live_parameters": (pieces.panel + 3) * largest,
    }
    if offload and device.type != "cpu":
        stage["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage}
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(pieces.all[0].dtype)
    return config | ({kind: {"enabled": True}} if kind else {})


def _tell_steps(model: MaskedModel, reset: Callable[[], None]) -> None:
    """Say where a step begins, from which the engine knows what to prefetch: with the references, if they are run."""
    fresh = [False]

    def stock(_module: nn.Module, _args: Any) -> None:
        reset()
        fresh[0] = True

    def masked(_module: nn.Module, _args: Any) -> None:
        if not fresh[0]:
            reset()
        fresh[0] = False

    model.subject.model.base_model.register_forward_pre_hook(stock)
    model.register_forward_pre_hook(masked)


def fsdp_shard(
    model: MaskedModel, device: torch.device, source: WeightSource | None = None, offload: bool = False
) -> None:
    """Hand a model's frozen weights to torch's `fully_shard`; every forward is one of all processes from now on.

    Each block's weights are prefetched while the one before computes, forward and backward.

    Args:
        model: with `recompute=True`; its subject's parameters may be without memory, if there is a source.
        device: this process's.
        source: what the parameters are read from, piece by piece; None takes them from the model.
        offload: True keeps each process's part in the host's memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    pieces = cut_up(model, device, source)
    rank, world = rank_and_world()
    mesh = init_device_mesh(device.type, (world,))
    apart = offload and device.type != "cpu"
    policy = CPUOffloadPolicy() if apart else OffloadPolicy()
    made, kept = {}, 0
    for piece in pieces.each:
        room = made[id(piece)] = Room(piece, torch.device("meta"))
        fully_shard(room, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
        room.to_empty(device="cpu" if apart else device)
        part = room.flat.to_local()  # type: ignore[attr-defined]
        part.zero_()
        piece.fill(part, min(piece.total, rank * -(-piece.total // world)))
        piece.replace(None, device)
        kept += -(-piece.total // world)
    rooms = Rooms(list(made.values()))
    fully_shard(rooms, mesh=mesh)
    order: list[Any] = [made[id(piece)] for piece in pieces.all]
    for here, coming in itertools.pairwise(order):
        here.set_modules_to_forward_prefetch([coming])
    rooms(torch.zeros((), device=device))  # the first forward tells the engine which module is the outermost
    furnish(model, pieces, made)
    model.shards = Engine(kept / sum(piece.total for piece in pieces.each), rooms)


def furnish(model: MaskedModel, pieces: Pieces, made: Mapping[int, Room]) -> None:
    """Run all modules of a model inside their rooms."""
    for piece in pieces.each:
        for module in piece.modules:
            _move_in(module, made[id(piece)])
    if dist.is_initialized() and next(iter(made.values())).flat.is_cuda:
        torch.cuda.empty_cache()


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
