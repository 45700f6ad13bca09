"""What a task is made of: pairs of prompts, and the batches that the models see."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitlit.errors import UserError

ALONE, LACKING = -1, -2  # in place of a wrong answer's token


@dataclass(frozen=True)
class Pair:
    """One clean prompt, its corrupted twin and the text that the model should say next.

    Attributes:
        clean: prompt on which the model shows the behaviour, without the answer.
        corrupted: prompt with as many tokens in which the behaviour's cause is changed. None, in all pairs of a task,
            will do for ablation by zeros, means or trained constants, which takes nothing from such a prompt.
        answer: continuation of `clean`, with its leading space where the language has one.
        wrong_answer: continuation to compare with (the other name, say), or None.
        right, wrong: continuations of one token each whose summed probabilities are compared, where a task has many
            right answers (later years, verbs in the plural); both or neither are given.
        in_place: True where the answer does not follow the prompt: the model says its tokens, one each, at the prompt's
            last tokens (a sequence is mapped to a sequence).
        roles: `(role, start, end)` character spans of `clean` that name what its tokens are for.
        template: name of the template that made the pair, with its variant (`went/ABBA`).
        source: where the pair comes from (`pairs.jsonl:17`), for messages.
        group: the sentence, fact, operands ... that pairs share, so that they are one observation of it; empty takes
            the template without its variant.
        bridge: continuations of the two prompts up to their subject that a two-step answer goes over and neither prompt
            says: of "In the city of Lyon, people speak the", " France". Such a pair has a role "subject".
    """

    clean: str
    corrupted: str | None
    answer: str
    wrong_answer: str | None = None
    roles: tuple[tuple[str, int, int], ...] = field(default=())
    template: str = ""
    source: str = ""
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    in_place: bool = False
    group: str = ""
    bridge: tuple[str, str] | None = None

    @property
    def first_hop(self) -> Pair | None:
        """The first of two steps: both prompts up to the subject, and the bridge; None where the pair has no bridge.

        Raises:
            UserError: it is not known where the subject ends.
        """
        if self.bridge is None or self.corrupted is None:
            return None
        start, end = next(((start, end) for role, start, end in self.roles if role == "subject"), (0, 0))
        rest = self.clean[end:]
        if not end or not self.corrupted.endswith(rest):
            raise UserError(
                "a bridge is said at the end of the subject; give the pair the role 'subject' and both prompts the "
                "same words behind it, or leave its bridge out"
            )
        clean, corrupted = self.clean[:end], self.corrupted.removesuffix(rest)
        source = f"first step of '{self.clean}'"
        return Pair(clean, corrupted, *self.bridge, template=self.template, group=clean[start:], source=source)

    @property
    def unit(self) -> str:
        """What the pair shares with others, for intervals that speak for new sentences; empty where it stands alone."""
        return self.group or self.template.split("/")[0]


@dataclass
class Batch:
    """Encoded pairs, padded on the right to one length.

    Answers of several tokens are teacher-forced: `clean` and `corrupted` hold the prompt and all answer tokens but the
    last, and `positions[b, a]` is where the logits predict answer token `a`.

    Attributes:
        index: place of each pair in its split; caches are keyed by it.
        group: number of the sentence (or other item) that a pair shares with others of its split.
        clean: token ids of the clean prompts.
        corrupted: token ids of the corrupted prompts; those of the clean ones where there are none.
        lengths: real tokens in each row.
        positions: where each answer token is predicted; 0 where `answer_mask` is False.
        answer: answer tokens.
        answer_mask: True for real answer tokens (rows with shorter answers are padded).
        contrast: column of `positions` at which answer and wrong answer first differ; 0 without a wrong answer.
        wrong: token of the wrong answer in that column; `ALONE` where no pair of the task has one or choices, `LACKING`
            where other pairs have.
        roles: role of every token (index into the task's role names; 0 is "other").
        choices: tokens that may follow at the first answer position, where a task has many right answers; any token
            where `signs` is 0.
        signs: +1 for right choices, -1 for wrong ones, 0 for none (rows without choices have only zeros).
    """

    index: Int[Tensor, "batch"]
    group: Int[Tensor, "batch"]
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, "batch"]
    positions: Int[Tensor, "batch answer"]
    answer: Int[Tensor, "batch answer"]
    answer_mask: Bool[Tensor, "batch answer"]
    contrast: Int[Tensor, "batch"]
    wrong: Int[Tensor, "batch"]
    roles: Int[Tensor, "batch pos"]
    choices: Int[Tensor, "batch choice"]
    signs: Int[Tensor, "batch choice"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        if torch.device(device).type == "cuda" and self.clean.device.type == "cpu":
            return self.moved_at_once(device)
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return Batch(**moved)

    def moved_at_once(self, device: torch.device | str) -> Batch:
        """The same batch on another device, in one copy that waits for nothing; its tensors share their memory."""
        parts = [getattr(self, f.name) for f in fields(self)]
        sizes = [part.numel() for part in parts]
        host = torch.empty(sum(sizes), dtype=torch.long, pin_memory=torch.cuda.is_available())
        torch.cat([part.flatten().long() for part in parts], out=host)
        moved = host.to(device, non_blocking=True).split(sizes)
        return Batch(*(own.view(part.shape).to(part.dtype) for own, part in zip(moved, parts, strict=True)))

    def head(self, count: int) -> Batch:
        """The first `count` rows."""
        return Batch(**{f.name: getattr(self, f.name)[:count] for f in fields(self)})

    @property
    def alike(self) -> int:
        """Tokens that all rows begin with, in both prompts and of the same roles, but for each row's last one."""
        same = torch.stack([(part == part[:1]).all(0) for part in (self.clean, self.corrupted, self.roles)]).all(0)
        return min(int(same.long().cumprod(0).sum()), int(self.lengths.min()) - 1)

    @property
    def has_corrupted(self) -> bool:
        """Whether there are corrupted prompts, which differ from the clean ones in every pair."""
        return bool((self.clean != self.corrupted).any(1).all())

    def __len__(self) -> int:
        return self.clean.shape[0]
