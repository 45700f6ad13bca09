"""python tests/check_dtypes.py [RUN RUN]: SmolLM2 in bfloat16 beside float32 on IOI pairs, and two short runs' edges.

Prints the relative error of logits and of mask gradients under random masks, with Triton kernels and without (on a
GPU), and how many edges the circuits of two runs have in common.
"""

from __future__ import annotations

import sys

import torch

from circuitlit import (
    Circuit,
    MaskedLoss,
    MaskedModel,
    MaskLayout,
    PairsModule,
    References,
    ioi,
    kl_divergence,
    load_subject,
)
from circuitlit.masked.kernels import use


def measure(dtype: str, kernels: str, device: str, pairs: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the answers and gradient of the KL, under the same random masks."""
    use(kernels)
    subject = load_subject("smollm2", dtype=dtype, device=device)
    splits = ioi(subject.tokenizer, n_train=pairs, n_val=8, n_test=8, seed=0)
    batch = PairsModule(splits, subject.tokenizer, pairs, seed=0).train.collate(range(pairs)).to(device)
    model, layout = MaskedModel(subject, panel=4), MaskLayout(subject.graph)
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(subject.graph.n_edges, generator=generator) ** 0.1).to(device).requires_grad_()
    reference = References(subject, "interchange")(batch)
    (gradient,) = torch.autograd.grad(
        MaskedLoss(model, layout, kl_divergence, capture=False)(masks, batch, reference), masks
    )
    with torch.no_grad():
        logits = model(layout.dense(masks), batch.clean, reference.ablated, batch.positions)
    return logits.double().log_softmax(-1).cpu(), gradient.double().cpu()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    logits, gradient = measure("float32", "torch", device)
    for kernels in ("torch", "auto") if device == "cuda" else ("torch",):
        for dtype in ("float32", "bfloat16"):
            found = measure(dtype, kernels, device)
            error = [float((f - e).norm() / e.norm()) for f, e in zip(found, (logits, gradient), strict=True)]
            kl = float((logits.exp() * (logits - found[0])).sum(-1).mean())
            best = [set(g.abs().topk(len(g) // 20).indices.tolist()) for g in (gradient, found[1])]
            print(
                f"{dtype} kernels={kernels}: log-probabilities {error[0]:.1e} off (relative), KL {kl:.1e}, "
                f"mask gradients {error[1]:.1e} off, {len(best[0] & best[1]) / len(best[0]):.3f} of the top 5 % shared"
            )
    if len(sys.argv) == 3:
        kept = [Circuit.load(run).kept for run in sys.argv[1:]]
        shared, either = int((kept[0] & kept[1]).sum()), int((kept[0] | kept[1]).sum())
        share = shared / int(kept[0].sum())
        print(f"{' and '.join(sys.argv[1:])}: {share:.3f} of the edges in common, Jaccard {shared / either:.3f}")


if __name__ == "__main__":
    main()
