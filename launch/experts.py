"""Router edges in circuits of small mixtures of experts, trained here on the mixture of tasks of experiment=emergence.

    python launch/experts.py mixtral runs/experts/mixtral            # minutes on a GPU; olmoe likewise
    python launch/experts.py mixtral OUT --steps 60 --layers 2       # a try on a CPU

For each task: how many of the circuit's edges end in routers, beside what a circuit of as many random edges has
(hypergeometric p); the circuit's KL without these edges, beside its KL without as many of its other edges (mean, least
and most of 20 draws). Tasks that the model does not do are left out. A checkpoint `series/stepSTEPS` that is there is
taken, so that a training that was cut off can be looked at: --steps names its last one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from scipy.stats import hypergeom
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit import Pairs, check_model, find_circuit, load_subject
from circuitlit.discover import Schedule
from circuitlit.evaluate import TestBed
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.finetune.mixture import KINDS, VOCABULARY
from circuitlit.finetune.pretrain import Recipe, pretrain, write_tasks

DRAWS = 20
DONE = 0.7  # accuracy below which no circuit is looked at
SHARES = {"repeats": 0.6, "names": 0.16, "agreement": 0.12, "successor": 0.12}


@dataclass(frozen=True)
class Experts(Recipe):
    """As `Recipe`, of a mixture of eight experts, two a token, each twice as wide as the stream."""

    family: str = "mixtral"

    def model(self) -> Any:
        """The untrained model."""
        torch.manual_seed(self.seed)
        config = AutoConfig.for_model(
            self.family,
            vocab_size=len(VOCABULARY),
            hidden_size=self.hidden_size,
            intermediate_size=2 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            num_local_experts=8,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            max_position_embeddings=max(256, self.length),
            initializer_range=self.hidden_size**-0.5,
            bos_token_id=VOCABULARY["<s>"],
            eos_token_id=VOCABULARY["<s>"],
            pad_token_id=None,
        )
        return AutoModelForCausalLM.from_config(config, experts_implementation="eager")


def router_edges(found: FoundCircuit, seed: int = 0) -> dict[str, Any]:
    """Edges into routers in a circuit, with both controls."""
    circuit, bench = found.live.circuit, found.live.bench
    graph, kept = circuit.graph, circuit.kept[0]
    routers = torch.tensor([reader.endswith("<router>") for reader in graph.readers])[graph.reader_of]
    inside, others = kept & routers, (kept & ~routers).nonzero()[:, 0]
    count, possible = int(inside.sum()), int(routers.sum())
    bed, draw = TestBed.of(bench, bench.data.test), torch.Generator().manual_seed(seed)

    def kl(edges: torch.Tensor) -> float:
        return float(bed.run(edges[None]).kl.mean())

    def without_others() -> float:
        left = kept.clone()
        left[others[torch.randperm(len(others), generator=draw)[:count]]] = False
        return kl(left)

    drawn = torch.tensor([without_others() for _ in range(DRAWS)])
    return {
        "edges": circuit.n_edges,
        "router_edges": count,
        "expected": circuit.n_edges * possible / graph.n_edges,
        "p_as_many_by_chance": float(hypergeom.sf(count - 1, graph.n_edges, possible, circuit.n_edges)),
        "kl": kl(kept),
        "kl_without_router_edges": kl(kept & ~routers),
        "kl_without_as_many_others": [float(drawn.mean()), float(drawn.min()), float(drawn.max())],
        "accuracy_of_model": accuracy(found),
        "experts": found.experts,
    }


def accuracy(found: FoundCircuit) -> float | None:
    """The full model's, on test pairs."""
    return found.full.accuracy.value if found.full and found.full.accuracy else None


def main() -> None:
    """Train, search, print, write `experts.json`."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("family", choices=("mixtral", "olmoe"))
    words.add_argument("out", type=Path)
    words.add_argument("--steps", type=int, default=2000)
    words.add_argument("--layers", type=int, default=6)
    words.add_argument("--hidden", type=int, default=256)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--sparsity", type=float, default=0.9)
    given = words.parse_args()
    numbers = {"lr": 0.002, "warmup": 0.05, "weight_decay": 0.01, "shares": SHARES, "per_doubling": 1}
    size = {"hidden_size": given.hidden, "layers": given.layers, "heads": 8, "batch_size": 64, "length": 128}
    recipe = Experts(**size, **numbers, steps=given.steps, seed=given.seed, family=given.family)
    series = given.out / "series"
    last = series / f"step{given.steps}"
    if not last.is_dir():
        pretrain(recipe, series, lambda **more: Trainer(accelerator="auto", devices=1, **more))
    write_tasks(given.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_model(last, device=device)  # OLMoE's attention is borrowed, which asks for a check
    subject = load_subject(last, name=f"tiny {given.family}", device=device)
    result = {}
    for kind in KINDS:
        rows = [json.loads(line) for line in (given.out / f"{kind}.jsonl").read_text().splitlines()]
        schedule = Schedule(300, 0.3, start_sparsity=0.5, warmup=0.5, harden=0.5, final_noise=0.1, hard=0.3)
        pairs = Pairs.from_list(rows, name=kind)
        found = find_circuit(subject, pairs, given.sparsity, schedule=schedule, batch_size=32, seed=given.seed)
        if (does := accuracy(found)) is not None and does < DONE:
            print(f"{kind}: the model does not do it, accuracy {does:.3f}, {DONE} is asked for", flush=True)
            continue
        result[kind] = router_edges(found)
        print(kind, json.dumps({key: value for key, value in result[kind].items() if key != "experts"}), flush=True)
        for row in result[kind]["experts"]:
            print("  ", json.dumps(row), flush=True)
    (given.out / "experts.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
