"""Tuning of a circuit's components alone: gradients of all other weights are nought."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch

from circuitlit.model import Subject
from circuitlit.model.slices import slices


def train_only(subject: Subject, nodes: Collection[str]) -> int:
    """Make some nodes' weights trainable and nothing else; returns how many weights that are.

    A weight without gradient is not moved by Adam either, as long as there is no weight decay. Keys and values of
    grouped-query attention are trained only with all heads of their group.

    Args:
        subject: its model, without adapters.
        nodes: heads and MLPs.
    """
    shadow = copy.deepcopy(subject.model)
    with torch.no_grad():
        for parameter in shadow.parameters():
            parameter.zero_()
        for part in slices(Subject(shadow), nodes):
            part.fill_(1)
    chosen, count = dict(shadow.named_parameters()), 0
    subject.model.requires_grad_(False)
    for name, parameter in subject.model.named_parameters():
        mask = chosen[name].detach()
        own = int(mask.sum())
        if own:
            parameter.requires_grad_(True)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
            count += own
    return count
