# ruff: noqa: B023 (each function runs before the loop goes on)
"""Kernels against their twins: `python tests/check_kernels.py [check] [time] [sweep [write]]`.

`time` adds microseconds and GB/s at the sizes that matter, `sweep` tries block sizes.

On a GPU, or with TRITON_INTERPRET=1 on the CPU (small sizes only). Exits with 1 if an error is too large.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitlit.discover import HardConcrete
from circuitlit.masked import kernels
from circuitlit.masked.gpu import attention, mixing, projection, shift
from circuitlit.masked.projection import plain_project, plain_project_backward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUND = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
if DEVICE == "cuda":
    BOUND[torch.float32] = 2e-3  # TF32 in the timed part; exact products are checked at 2e-5 first


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the expected tensor's root mean square."""
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().square().mean().sqrt().clamp(min=1e-30))


def mixing_errors(
    dtype: torch.dtype, readers: int, writers: int, tokens: int, width: int
) -> Iterator[tuple[str, float]]:
    every = torch.rand(readers + 3, writers + 5, device=DEVICE)
    some, of = slice(2, 2 + readers), slice(5, 5 + writers)
    masks, laid_out = every[some, of].to(dtype), mixing.laid_out(every, dtype)
    deltas = torch.randn(writers + 5, tokens, width, device=DEVICE).to(dtype)
    base, shared = torch.randn(readers, tokens, width, device=DEVICE).to(dtype), deltas.new_ones(tokens, width)
    wide = [t.double() for t in (masks, deltas[of], base, shared)]
    expected = wide[2] + wide[3]
    kernels.mix(expected, wide[0][None], wide[1])
    found = torch.empty_like(base)
    mixing.mix(found, laid_out, some, of, deltas, base, shared)
    yield "mix", off(found, expected)
    grad_deltas = torch.randn_like(deltas)
    untouched, wide_deltas = grad_deltas[:5].clone(), grad_deltas[of].double()
    grad_masks = torch.zeros(readers + 1, writers + 2, device=DEVICE)[1:, 2:]
    library = kernels.mix_backward(base, masks[None], deltas[of], grad_deltas[of].clone())[0]
    expected_masks = kernels.mix_backward(wide[2], wide[0][None], wide[1], wide_deltas)[0]
    mixing.mix_backward(base, laid_out, some, of, deltas, grad_deltas, grad_masks)
    yield "mix_backward masks", off(grad_masks, expected_masks)
    yield "mix_backward masks, library", off(library, expected_masks)
    yield "mix_backward deltas", off(grad_deltas[of], wide_deltas)
    assert torch.equal(grad_deltas[:5], untouched)


def projection_errors(
    dtype: torch.dtype, readers: int, tokens: int, width: int, outs: int, centred: bool, biased: bool
):
    x = (torch.randn(readers, tokens, width, device=DEVICE) + 0.3).to(dtype)
    weight = (torch.randn(readers, width, outs, device=DEVICE) / width**0.5).to(dtype)
    constant = torch.randn(readers, 1, outs, device=DEVICE).to(dtype) if biased else None
    grad = torch.randn(readers, tokens, outs, device=DEVICE).to(dtype)
    wide = [None if t is None else t.double() for t in (x, weight, constant, grad)]
    if centred:
        wide[1] = wide[1] - wide[1].mean(1, keepdim=True)
        weight = wide[1].to(dtype)
    found, mean, factor = projection.project(x, weight, constant, 1e-5, centred)
    expected, wide_mean, wide_factor = plain_project(wide[0], weight.double(), wide[2], 1e-5, centred)
    yield "project", off(found, expected)
    room = torch.empty_like(x)
    projection.project_backward(grad, found, x, weight, constant, mean, factor, room)
    wide_room = torch.empty_like(wide[0])
    plain_project_backward(wide[3], expected, wide[0], weight.double(), wide[2], wide_mean, wide_factor, wide_room)
    yield "project_backward", off(room, wide_room)
    if not centred:  # the gain on the way, and weights as a linear module has them
        gain = (torch.rand(width, device=DEVICE) + 0.5).to(dtype)
        lying = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in weight.split([2, readers - 2])]
        found, mean, factor = projection.project(x, lying, constant, 1e-5, False, gain)
        folded = gain.double()[:, None] * weight.double()
        expected, _, wide_factor = plain_project(wide[0], folded, wide[2], 1e-5, False)
        yield "project, gain apart", off(found, expected)
        projection.project_backward(grad, found, x, lying, constant, mean, factor, room, gain)
        plain_project_backward(wide[3], expected, wide[0], folded, wide[2], None, wide_factor, wide_room)
        yield "project_backward, gain apart", off(room, wide_room)


def plain_attention(
    qkv: Tensor, ablated: Tensor, heads: int, kv: int, scale: float, cos: Tensor | None, sin: Tensor | None
):
    batch = len(ablated)
    q, k, v = (x.unflatten(1, (batch, -1)).transpose(0, 1) for x in qkv.split([heads, kv, kv]))
    if cos is not None and sin is not None:
        q, k = kernels.rotated(q, cos, sin), kernels.rotated(k, cos, sin)
    k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
    result = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return (result - ablated.unflatten(-1, (heads, -1)).transpose(1, 2)).transpose(0, 1).flatten(1, 2)


def attention_errors(dtype: torch.dtype, batch: int, length: int, heads: int, kv: int, outs: int, rotated: int):
    qkv = torch.randn(heads + 2 * kv, batch * length, outs, device=DEVICE).to(dtype)
    ablated = torch.randn(batch, 2, length, heads * outs, device=DEVICE).to(dtype)[:, 1]
    grad = torch.randn(heads, batch * length, outs, device=DEVICE).to(dtype)
    angles = torch.randn(1, length, rotated // 2, device=DEVICE).repeat(1, 1, 2)
    cos, sin = (angles.cos().to(dtype), angles.sin().to(dtype)) if rotated else (None, None)
    found = attention.attend(qkv, ablated, heads, kv, 0.3, cos, sin)
    wide = qkv.double().requires_grad_()
    turned = [None if t is None else t.double() for t in (cos, sin)]
    expected = plain_attention(wide, ablated.double(), heads, kv, 0.3, *turned)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    yield "attend", off(found, expected)
    yield "attend_backward", off(attention.attend_backward(grad, qkv, batch, heads, kv, 0.3, cos, sin), expected_grad)


def shift_errors(size: int) -> Iterator[tuple[str, float]]:
    gates = HardConcrete()
    log_alpha = 3 * torch.randn(size, device=DEVICE)
    for share, scale in ((0.05, 1.0), (0.5, 0.1)):
        found = shift.shift(log_alpha, share, gates.threshold, scale, 60 * scale, 50)
        yield "shift", float((gates.open_probability(log_alpha.double() + found, scale).mean() - share).abs())


def cases() -> Iterator[tuple[str, torch.dtype, Iterator[tuple[str, float]]]]:
    """Few combinations on a GPU, where each compiles its own kernel."""
    on_gpu = DEVICE == "cuda"
    # Triton's interpreter holds numbers in numpy, which has no bfloat16.
    for dtype in (torch.bfloat16 if on_gpu else torch.float16, torch.float32):
        readers = (1, 37, 111, 200, 300) if on_gpu else (1, 19, 40)
        sizes = [(640, 768), (35, 576)] if on_gpu else [(7, 24), (5, 72)]
        if dtype == torch.float32:
            sizes.append((7, 25))
        mixed = [] if on_gpu and dtype == torch.float32 else sizes  # there the library mixes float32
        for (tokens, width), r, w in itertools.product(mixed, readers, (1, 12, 39, 157) if on_gpu else (1, 18, 33)):
            yield f"{r} x {w}, {tokens} x {width}", dtype, mixing_errors(dtype, r, w, tokens, width)
        for (tokens, width), outs in itertools.product(sizes[:2], (6, 64) if on_gpu else (6, 16)):
            for centred, biased in ((True, True), (False, False), (False, True))[
                : 3 if outs == 64 or not on_gpu else 1
            ]:
                name = f"{tokens} x {width} to {outs}, centred {centred}, biased {biased}"
                yield name, dtype, projection_errors(dtype, 5, tokens, width, outs, centred, biased)
        for length, heads, kv, outs, rotated in (
            (
                (20, 9, 3, 64, 64),
                (64, 3, 3, 64, 0),
                (64, 4, 2, 128, 32),
                (7, 4, 2, 6, 6),
                (1, 3, 3, 64, 0),
                (128, 3, 3, 64, 0),
            )
            if on_gpu
            else ((7, 4, 2, 6, 6), (20, 3, 3, 16, 8), (20, 4, 2, 6, 0), (1, 4, 4, 6, 4))
        ):
            name = f"{length} tokens, {heads} heads, {kv} kv, {outs} wide, {rotated} rotated"
            yield name, dtype, attention_errors(dtype, 3, length, heads, kv, outs, rotated)
    for size in (70_651, 1000) if on_gpu else (700,):
        yield f"{size} masks", torch.float32, shift_errors(size)


def check() -> bool:
    """Print the largest error of every kernel; True if all are small."""
    worst: dict[tuple[str, torch.dtype], tuple[float, str]] = {}
    failed = 0
    for name, dtype, errors in cases():
        try:
            for kernel, error in errors:
                if error > worst.get((kernel, dtype), (0.0, ""))[0]:
                    print(f"   {kernel} {dtype} {error:.1e} at {name}", flush=True)
                worst[kernel, dtype] = max(worst.get((kernel, dtype), (0.0, "")), (error, name))
        except Exception as problem:
            failed += 1
            if failed <= 5:
                print(f"FAILED {name} {dtype}: {type(problem).__name__}: {str(problem)[:1500]}", flush=True)
    good = not failed
    for (kernel, dtype), (error, name) in worst.items():
        fine = error <= (2e-4 if dtype == torch.float32 else BOUND[dtype] * 4)
        good &= fine
        print(f"{'ok ' if fine else 'BAD'} {kernel:20s} {dtype!s:15s} {error:.1e}  worst at {name}", flush=True)
    print(f"{failed} cases raised")
    return good


def seconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Of one call, from the GPU's clock; the best of some."""
    for _ in range(3):
        call()
    best = float("inf")
    for _ in range(repeats):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        best = min(best, begun.elapsed_time(ended) / 1e3)
    return best


def times() -> None:
    """Microseconds and GB/s of kernels and twins at the target shapes."""
    shapes = [  # name, readers a layer, tokens, width, (panel readers, writers) of each product, head width
        ("gpt2 32x64", 36, 2048, 768, [(37, 13), (37, 39), (1, 12), (74, 66), (111, 118), (185, 131)], 64),
        ("gpt2 32x20", 36, 640, 768, [(37, 13), (37, 39), (1, 12), (74, 66), (111, 118), (185, 131)], 64),
        ("smollm2 32x20", 15, 640, 576, [(16, 10), (16, 40), (1, 9), (80, 101), (80, 251)], 64),
        (
            "13B 8x64",
            120,
            512,
            5120,
            [(121, 41), (1, 40), (121, 820), (242, 164), (242, 820), (242, 1558), (363, 1476)],
            128,
        ),
    ]
    for name, heads, tokens, width, products, outs in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            if "13B" in name and dtype == torch.float32:
                continue
            for readers, writers in products:
                deltas = torch.randn(writers, tokens, width, device=DEVICE).to(dtype)
                grads, out = torch.randn_like(deltas), torch.randn(readers, tokens, width, device=DEVICE).to(dtype)
                masks = torch.rand(readers, writers, device=DEVICE)
                cast, laid_out, grad_masks = (
                    masks.to(dtype)[None],
                    mixing.laid_out(masks, dtype),
                    torch.empty_like(masks),
                )
                rows, of = slice(0, readers), slice(0, writers)
                forward = (readers + writers) * deltas[0].nbytes
                backward = (readers + 3 * writers) * deltas[0].nbytes
                row = {
                    "mix": (forward, lambda: mixing.mix(out, laid_out, rows, of, deltas)),
                    "mix cuBLAS": (forward, lambda: kernels.mix(out, cast, deltas, add=False)),
                    "back": (
                        backward,
                        lambda: mixing.mix_backward(out, laid_out, rows, of, deltas, grads, grad_masks),
                    ),
                    "back cuBLAS": (backward, lambda: kernels.mix_backward(out, cast, deltas, grads)),
                }
                report(f"{name} {str(dtype)[6:]} {readers} x {writers}", row)
                del deltas, grads, out
            x = torch.randn(heads, tokens, width, device=DEVICE).to(dtype)
            weight = torch.randn(heads, width, outs, device=DEVICE).to(dtype)
            grad = torch.randn(heads, tokens, outs, device=DEVICE).to(dtype)
            made, mean, factor = projection.project(x, weight, None, 1e-5, True)
            room = torch.empty_like(x)
            known = (grad, made, x, weight, None, mean, factor, room)
            row = {
                "project": (x.nbytes + made.nbytes, lambda: projection.project(x, weight, None, 1e-5, True)),
                "project cuBLAS": (x.nbytes + made.nbytes, lambda: plain_project(x, weight, None, 1e-5, True)),
                "back": (2 * x.nbytes + 2 * made.nbytes, lambda: projection.project_backward(*known)),
                "back cuBLAS": (2 * x.nbytes + 2 * made.nbytes, lambda: plain_project_backward(*known)),
            }
            report(f"{name} {str(dtype)[6:]} projection of {heads}", row)
    log_alpha = torch.randn(70_651, device=DEVICE)
    row = {
        "one launch": (0, lambda: shift.shift(log_alpha, 0.05, 0.0, 1.0, 60.0, 50)),
        "plain": (0, lambda: HardConcrete().bisected(log_alpha, 0.05)),
    }
    report("shift of 70,651", row)


FORWARD = {
    16: [(16, 512, 8, 3), (32, 256, 4, 3), (16, 512, 4, 3)],
    32: [(32, 128, 4, 3), (32, 256, 8, 3), (64, 128, 4, 3)],
    64: [(32, 128, 8, 3), (32, 128, 4, 4), (64, 128, 4, 3), (32, 256, 8, 3), (64, 256, 8, 3)],
    128: [(64, 256, 8, 3), (64, 256, 8, 4), (32, 256, 8, 4), (64, 128, 4, 4), (64, 128, 8, 4), (32, 128, 4, 4)],
    256: [(64, 128, 8, 3), (64, 128, 8, 4), (32, 128, 8, 4), (128, 128, 8, 2)],
}
BACKWARD = {
    16: [(16, 256, 4, 3), (32, 128, 4, 3), (16, 512, 8, 2)],
    32: [(32, 128, 4, 3), (16, 256, 4, 3), (64, 64, 4, 3)],
    64: [(16, 128, 4, 3), (32, 64, 4, 3), (32, 128, 4, 3), (64, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)],
    128: [(64, 128, 8, 3), (64, 64, 8, 3), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3)],
    256: [(64, 128, 8, 2), (64, 64, 8, 3), (64, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3)],
}
GPT2, CODELLAMA = (2048, 768), (512, 5120)
SWEPT = {
    16: [(1, 12, *GPT2), (16, 20, *GPT2)],
    32: [(27, 60, *GPT2)],
    64: [(37, 26, *GPT2), (64, 120, *GPT2)],
    128: [(111, 79, *GPT2), (121, 820, *CODELLAMA)],
    256: [(185, 131, *GPT2), (242, 820, *CODELLAMA)],
}


def sweep() -> None:
    """Try block sizes of the mixing kernels in bfloat16; with `write` the fastest go into `masked/gpu/mixing.py`."""
    path = Path(mixing.__file__)
    text = path.read_text()
    for name, table, choices in (("FORWARD", mixing.FORWARD, FORWARD), ("BACKWARD", mixing.BACKWARD, BACKWARD)):
        calls = {block: [_call(name, *shape) for shape in shapes] for block, shapes in SWEPT.items()}
        fastest: dict[int, float] = {}
        for block, configs in choices.items():
            spent: dict[tuple[int, ...], float] = {}
            for config in configs:
                table[block] = config
                try:
                    each = [seconds(call, 5) for call, _, _ in calls[block]]
                except Exception as problem:
                    print(f"{name} {block} {config}: {type(problem).__name__}", flush=True)
                    continue
                spent[config] = sum(each)
                rates = [
                    f"{n_bytes / s / 1e9:.0f} GB/s {n_sums / s / 1e12:.0f} TFLOP/s"
                    for s, (_, n_bytes, n_sums) in zip(each, calls[block], strict=True)
                ]
                print(f"{name} {block} {config}: {' and '.join(rates)} at {SWEPT[block]}", flush=True)
            table[block] = min(spent, key=spent.__getitem__)
            fastest[block] = spent[table[block]]
        if name == "FORWARD":  # wide panels in blocks of 128 rows, if that is as fast
            wide = table.pop(256)
            if fastest[256] < sum(seconds(call, 5) for call, _, _ in calls[256]):
                table[256] = wide
        text = re.sub(rf"^{name} = .*$", f"{name} = {table}", text, flags=re.MULTILINE)
        print(f"{name} = {table}", flush=True)
    if "write" in sys.argv:
        path.write_text(text)


def _call(name: str, readers: int, writers: int, tokens: int, width: int) -> tuple[Callable[[], object], int, int]:
    """A mixing product, the bytes it moves, and its multiplications and additions."""
    deltas = torch.randn(writers, tokens, width, device=DEVICE).to(torch.bfloat16)
    out = torch.randn(readers, tokens, width, device=DEVICE).to(torch.bfloat16)
    laid_out, of = mixing.laid_out(torch.rand(readers, writers, device=DEVICE), torch.bfloat16), slice(0, writers)
    one, n_sums = deltas[0].nbytes, 2 * readers * writers * deltas[0].numel()
    if name == "FORWARD":
        moved = (readers + writers) * one
        return lambda: mixing.mix(out, laid_out, slice(0, readers), of, deltas), moved, n_sums
    grads, grad_masks = torch.randn_like(deltas), torch.empty(readers, writers, device=DEVICE)
    moved = (readers + 3 * writers) * one
    return (
        lambda: mixing.mix_backward(out, laid_out, slice(0, readers), of, deltas, grads, grad_masks),
        moved,
        2 * n_sums,
    )


def report(title: str, row: dict[str, tuple[int, Callable[[], object]]]) -> None:
    """One line: time and bandwidth of each call."""
    parts = []
    for name, (n_bytes, call) in row.items():
        try:
            spent = seconds(call)
            parts.append(f"{name} {spent * 1e6:.0f} us {n_bytes / spent / 1e9:.0f} GB/s")
        except Exception as problem:
            parts.append(f"{name} FAILED {type(problem).__name__} {str(problem)[:200]}")
    print(f"{title}: " + ", ".join(parts), flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    good = ("check" not in sys.argv[1:] and len(sys.argv) > 1) or check()
    if "time" in sys.argv:
        torch.set_float32_matmul_precision("high")
        times()
    if "sweep" in sys.argv:
        sweep()
    sys.exit(0 if good else 1)
