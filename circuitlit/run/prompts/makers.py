"""The model that `prompts` searches, tuned where it must be, and its circuits; what is finished is not made again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli import ranks
from circuitlit.cli.arguments import setting
from circuitlit.cli.build import attribute, build_subject, build_workbench, plain
from circuitlit.cli.checkpoints import fits
from circuitlit.cli.checks import run_dir
from circuitlit.cli.kept import files_of, settings_of
from circuitlit.cli.learn import learn, training_settings
from circuitlit.cli.resume import TUNING, trained_with
from circuitlit.cli.sides import load_side
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.evaluate.find import ask
from circuitlit.files import file_name
from circuitlit.graph import Circuit
from circuitlit.masked import MaskedModel
from circuitlit.model import Subject
from circuitlit.model.contents import stamps_of
from circuitlit.progress import Clock, say
from circuitlit.run import tune
from circuitlit.store import Store


@dataclass(frozen=True)
class Asked:
    """A model with the pairs of every prompt, and how well it does them.

    Attributes:
        benches, behaviour: by prompt.
        untuned: what the model could do before it was tuned; None where it was not.
        tuning: settings that it was tuned with.
    """

    benches: dict[str, Workbench]
    behaviour: dict[str, Behaviour]
    untuned: dict[str, Behaviour] | None = None
    tuning: dict[str, Any] | None = None

    @property
    def subject(self) -> Subject:
        """The model."""
        return next(iter(self.benches.values())).subject


def able(cfg: DictConfig, tasks: dict[str, DictConfig]) -> Asked:
    """A model for all prompts, tuned if `prompts.tune` says how and the untuned one cannot do one of them."""
    store, folder = Store(run_dir()), run_dir() / "tuned"
    settings = _asked_with(cfg, tasks)
    untuned = store.known("untuned", settings, dict[str, Behaviour]) if folder.is_dir() else None
    if untuned is None:
        asked = _asked(tasks, build_subject(cfg))
        reasons = {name: asked.behaviour[name].verdict(least) for name, least in least_accuracy(tasks).items()}
        if cfg.prompts.tune is None or not any(reasons.values()):
            return asked
        if ranks.world() > 1:
            raise UserError(
                "the model cannot do the task and tuning runs on one device; set strategy=single for this run"
            )
        for name, reason in reasons.items():
            say(f"{name}: {reason}")
        untuned = asked.behaviour
        del asked  # makes room for the model that is tuned
        (run_dir() / "untuned.json").unlink(missing_ok=True)  # it speaks of the tuned model that is overwritten
        _tune(cfg)
        store.made("untuned", settings, dict[str, Behaviour], lambda: untuned)
    return replace(_asked(tasks, load_side(cfg, str(folder), "tuned")), untuned=untuned, tuning=settings)


def least_accuracy(tasks: dict[str, DictConfig]) -> dict[str, float]:
    """Share of right answers below which the model does not do a task, by task."""
    return {name: own.task.get("min_accuracy", 0) for name, own in tasks.items()}


def _asked(tasks: dict[str, DictConfig], subject: Subject) -> Asked:
    benches: dict[str, Workbench] = {}
    model: MaskedModel | None = None
    for name, own in tasks.items():
        benches[name] = build_workbench(own, subject, model)
        model = benches[name].model
    return Asked(benches, {name: ask(bench, aloud=False)[0] for name, bench in benches.items()})


def _asked_with(cfg: DictConfig, tasks: dict[str, DictConfig]) -> dict[str, Any]:
    """All that the untuned model's behaviour and the tuned model depend on."""
    tuning = None if cfg.prompts.tune is None else _tuning(cfg)
    groups = {name: {"task": plain(own.task), "data": plain(own.data)} for name, own in tasks.items()}
    files = files_of(groups | ({} if tuning is None else {"": [plain(tuning.task), plain(tuning.tune)]}))
    return settings_of(cfg, ("model", "adapter")) | {
        **files,
        "tasks": groups,
        "tune": tuning and trained_with(tuning, TUNING, 1),
        "weights": stamps_of(cfg.model.path, cfg.adapter.path),
    }


def _tuning(cfg: DictConfig) -> DictConfig:
    """The settings of `finetune` that `prompts.tune` gives, on this run's model."""
    settings = compose("finetune", [setting("finetune", str(word)) for word in cfg.prompts.tune])
    OmegaConf.set_struct(settings, False)
    for group in ("model", "paths"):
        settings[group] = plain(cfg[group])
    settings.seed, settings.callbacks.progress_bar = cfg.seed, cfg.callbacks.progress_bar
    settings.callbacks.checkpoint_every, settings.trainer.accelerator = 0, cfg.trainer.accelerator
    settings.trainer.enable_checkpointing = False
    return settings


def _tune(cfg: DictConfig) -> None:
    """Tune in this run's directory."""
    with Clock():
        tune.run(_tuning(cfg))
    for name in ("result", "history"):
        (run_dir() / f"{name}.json").replace(run_dir() / f"tuning_{name}.json")


def kept_circuit(
    cfg: DictConfig, name: str, bench: Workbench, facts: dict[str, Any], tuning: dict[str, Any] | None
) -> Circuit:
    """A prompt's circuit: read if it is there with these settings, else learned, from the last checkpoint of them on.

    Args:
        cfg: the prompt's settings.
        name: of the prompt.
        bench: model and pairs.
        facts: provenance of the model.
        tuning: settings that it was tuned with, None where it was not.
    """
    folder, trained = run_dir() / "circuits" / file_name(name), training_settings(cfg, bench)
    store = Store(folder)
    settings = trained | {"tuning": tuning, "stop_at_convergence": cfg.callbacks.stop_at_convergence}
    if store.known("made", settings, dict[str, int]) is not None:
        return Circuit.load(folder)
    own, last = cfg.copy(), folder / "checkpoints" / "last.ckpt"
    if fits(last, trained):
        own.ckpt_path = str(last)
    learner, _ = learn(own, bench, attribute(own, bench), folder)
    bench.release()  # captured steps of one prompt hold memory that the next one's, and evaluation, need
    circuit = bench.cut(learner.scores(), {**facts, "task": plain(cfg.task)})
    if ranks.is_writer():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "made.json").unlink(missing_ok=True)  # it speaks of the circuit that is overwritten
        circuit.save(folder)
        store.made("made", settings, dict[str, int], lambda: {"n_edges": circuit.n_edges})
    return circuit
