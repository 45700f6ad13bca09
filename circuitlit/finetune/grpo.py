"""Group-relative policy optimisation with a reward that can be checked: the answer was said."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.finetune.examples import Preference
from circuitlit.finetune.tuner import Tuner, answer_logits
from circuitlit.tasks import Batch


def says_right(tokens: Int[Tensor, "batch group answer"], batch: Batch) -> Float[Tensor, "batch group"]:
    """1 where a sample is the whole answer, or its first token one of the right choices; else 0."""
    same = ((tokens == batch.answer[:, None]) | ~batch.answer_mask[:, None]).all(-1)
    choice = ((tokens[..., :1] == batch.choices[:, None]) & (batch.signs[:, None] > 0)).any(-1)
    return (same | choice).float()


def advantages(rewards: Float[Tensor, "batch group"]) -> Float[Tensor, "batch group"]:
    """Rewards less their group's mean, over its standard deviation; 0 in a group of equal rewards."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)


class RewardTuner(Tuner):
    """Samples a group of answers to each prompt and makes the better ones of a group more likely.

    One update on each group, so the ratio to the sampling policy is 1 and nothing is clipped. The tie to the reference
    is an unbiased estimate of KL(policy || reference) at every sampled token.

    Args:
        model, optimisation, seed: as in `Tuner`; the seed draws the samples, anew at every step.
        group: samples a prompt, at least 2.
        beta: weight of the KL, in reward units a nat, at least 0.
        reference: the frozen model to stay near; None switches the adapters off instead.

    Source: Shao et al. (DeepSeekMath), arXiv 2402.03300, equations 3 and 4.
    """

    def __init__(
        self, *args: Any, group: int = 8, beta: float = 0.04, reference: nn.Module | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        if group < 2 or beta < 0:
            raise UserError(f"tune.build.group={group} must be at least 2 and tune.build.beta={beta} not negative")
        if reference is None and not self.is_adapted:
            raise ValueError("a fully tuned model needs a frozen reference model: pass a copy")
        self.group, self.beta = group, beta
        self._frozen = (reference,)  # a tuple keeps it out of parameters and checkpoints

    def on_fit_start(self) -> None:
        """Put the reference where the policy is."""
        if self._frozen[0] is not None:
            self._frozen[0].to(self.device)

    def figures(self, batch: Preference, micro_batch: int) -> dict[str, Float[Tensor, ""]]:
        """Loss, mean reward and KL."""
        rows = batch.chosen
        tokens = self.sample(rows, self._generator(micro_batch))
        rewards = says_right(tokens, rows)
        policy = self._log_probs(self.model, rows, tokens)
        with torch.no_grad(), self.model.disable_adapter() if self._frozen[0] is None else nullcontext():  # type: ignore[operator]
            reference = self._log_probs(self._frozen[0] or self.model, rows, tokens)
        behind = reference - policy
        kl = behind.exp() - behind - 1
        ratio = (policy - policy.detach()).exp()
        real = rows.answer_mask[:, None].float()
        per_token = (self.beta * kl - ratio * advantages(rewards)[..., None]) * real
        return {
            "loss": (per_token.sum(-1) / real.sum(-1)).mean(),
            "reward": rewards.mean(),
            "kl": ((kl * real).sum(-1) / real.sum(-1)).mean(),
        }

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator) -> Int[Tensor, "batch group answer"]:
        """Answers drawn from the model, token by token, as long as the right ones."""
        tokens = batch.answer[:, None].repeat(1, self.group, 1)
        for place in range(tokens.shape[-1]):
            probabilities = self._logits(self.model, batch, tokens)[:, :, place].softmax(-1).cpu()
            wide = probabilities.expand(-1, self.group, -1).flatten(0, 1)
            drawn = torch.multinomial(wide, 1, generator=generator).view(len(batch), self.group)
            tokens[:, :, place] = drawn.to(tokens.device)
        return tokens

    def _log_probs(
        self, model: nn.Module, batch: Batch, tokens: Int[Tensor, "batch group answer"]
    ) -> Float[Tensor, "batch group answer"]:
        log_probs = self._logits(model, batch, tokens).log_softmax(-1).expand(-1, self.group, -1, -1)
        return log_probs.gather(-1, tokens[..., None])[..., 0]

    def _logits(
        self, model: nn.Module, batch: Batch, tokens: Int[Tensor, "batch group answer"]
    ) -> Float[Tensor, "batch copies answer vocab"]:
        """Logits where the answers are predicted; answers of one token share their prompt's, one copy for the group."""
        columns = tokens.shape[-1]
        copies = 1 if columns == 1 else self.group
        ids = batch.clean[:, None].repeat(1, copies, 1)
        for place in range(columns - 1):
            at = (batch.positions[:, place] + 1).clamp(max=ids.shape[-1] - 1)
            real = batch.answer_mask[:, place + 1]
            forced = torch.where(real[:, None], tokens[:, :, place], ids.gather(2, _at(at, copies))[..., 0])
            ids.scatter_(2, _at(at, copies), forced[..., None])
        positions = batch.positions.repeat_interleave(copies, 0)
        return answer_logits(model, ids.flatten(0, 1), positions).unflatten(0, (len(batch), copies))

    def _generator(self, micro_batch: int) -> torch.Generator:
        """One stream of random numbers for each rank and micro-batch, the same in a resumed run."""
        accumulate = self.trainer.accumulate_grad_batches if self._trainer is not None else 1
        place = micro_batch % accumulate
        step = self.trainer.global_step if self._trainer is not None else micro_batch
        key = f"{self.seed}/{step}/{place}/{self.global_rank}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest()))


def _at(place: Int[Tensor, "batch"], copies: int) -> Int[Tensor, "batch copies 1"]:
    return place[:, None, None].repeat(1, copies, 1)
