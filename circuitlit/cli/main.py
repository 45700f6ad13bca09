"""The way in: `python train.py ...` and `python -m circuitlit VERB ...`."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from circuitlit.errors import FAILED, Stopped, UserError

VERBS = {
    "train": "learn masks until the circuit reproduces the model on a task",
    "timeline": "how the masks of a run evolved, and the stages it fell into; several runs: do they agree",
    "behaviour": "does the model do the tasks: accuracy, metric and the corrupted run's KL, by task and split",
    "check": "is the model read rightly: identities on its own weights and a twin; families=true lists all",
    "attribute": "score every edge by one attribution method and cut a circuit",
    "evaluate": "measure any saved circuit on any task and model",
    "trust": "how sure a circuit is, a row a claim: the model's errors, other ablations, changed pairs",
    "explain": "what a circuit does: example prompts, and the heads that matter with what they attend to and write",
    "rivals": "is a circuit the only one: others of its size that share some of its edges, down to none",
    "study": "compare methods over tasks and sparsities",
    "export": "write a circuit in the file formats of MIB and EAP-IG",
    "finetune": "tune the model on a task, all weights or an adapter, with checkpoints and a held-out test",
    "guided": "ranks of LoRA by layer from circuits, beside uniform, random and adaptive ones, at equal parameters",
    "compare": "circuits, weights and behaviour of a base model and a tuned one",
    "difference": "learn one mask for a base and a tuned model, and the few edges that must differ",
    "intervene": "ablate, transfer and scale the nodes that matter, beside matched random ones",
    "capabilities": "what tuning gained and lost over several tasks, and the smallest set of nodes that carries a gain",
    "generality": "circuits of several tasks on each other's pairs, and why a tuned model got worse at some",
    "prompts": "circuits of one behaviour under several prompts, each of them under every prompt",
    "knowledge": "what the model knows, its circuits and their carriers; experiment=inject_facts tunes new facts in",
    "heads": "what single heads do: scores, their parts in the IOI algorithm, causal checks",
    "evolve": "circuits over the checkpoints of a training run: behaviour, size, likeness, head scores, stages",
    "watch": "a circuit over somebody's fine-tuning: faithfulness, overlap, turnover, behaviour, drift, stages",
    "report": "the page of a run again, a page that compares runs, figures for papers, a W&B workspace",
    "bench": "time steps, runs and attribution, and reckon the memory that they need",
}
PLUGINS = str(Path(__file__).parent / "plugins")  # where Hydra finds launchers
CHATTY = (
    "deepspeed",
    "DeepSpeed",
    "httpx",
    "huggingface_hub.utils._http",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning_utilities.core.rank_zero",
)


@contextmanager
def _plain_end() -> Iterator[None]:
    """No traceback where a command is stopped early, or where nobody reads on or there is no room for its words."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # it may be closed
                sys.stdout.flush()
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped before anything was made", file=sys.stderr)
        sys.exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))
    except OSError as error:
        if sys.stdout is None or error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says it once more at its end
        sys.exit(1 if error.errno == errno.EPIPE else f"error: standard output: {error.strerror}; make room")


@_plain_end()
def main() -> None:
    """Entry of the console script: the first word is the verb."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb == "--version":
        return _say_version()
    if verb in ("", "-h", "--help"):
        lines = "\n".join(f"  {name:12} {text}" for name, text in VERBS.items())
        print(f"usage: python -m circuitlit VERB [key=value ...]\n\nverbs:\n{lines}", file=None if verb else sys.stderr)
        sys.exit(0 if verb else 2)
    if verb not in VERBS:
        from circuitlit.cli.wording import did_you_mean

        meant = did_you_mean(verb, VERBS) or "python -m circuitlit --help lists all"
        sys.exit(f"error: there is no verb {verb}; {meant}")
    run_verb(verb, [sys.argv[0], *sys.argv[2:]])


@_plain_end()
def run_verb(verb: str, argv: list[str]) -> None:
    """Run one verb as a Hydra app.

    Any mistake of the user's ends in one line on stderr and exit status 1, with nothing of the run left but what Hydra
    itself writes.
    """
    if "--version" in argv[1:]:
        return _say_version()
    _quiet()
    import hydra

    from circuitlit.cli import folder, ranks, resume, stopping
    from circuitlit.cli.arguments import readable
    from circuitlit.cli.mistakes import explain
    from circuitlit.cli.presets import conf_dir

    original = list(sys.argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    mistakes: list[str] = []
    here = os.getpid()
    failed: list[bool] = []

    def job(cfg) -> None:
        sys.argv = original  # Lightning starts its child processes with it
        from circuitlit.cli.checks import check
        from circuitlit.progress import CONSOLE, Clock

        try:
            resume.find_begun(cfg)
            if cfg.resume is not None:
                cfg = resume.as_it_was(cfg)
            folder.settle_run_id(cfg)
            check(cfg, verb)
            ranks.check(cfg, verb)
            if ranks.wanted_here(cfg) > 1:
                sys.exit(ranks.spawn(cfg, original))
            if cfg.verb in folder.PARTED:
                importlib.import_module("circuitlit.cli.parts").share_out(cfg, words)
            with folder.occupied(cfg):
                cfg.callbacks.progress_bar &= CONSOLE.is_terminal  # a log gets lines instead
                with Clock():
                    result = resume.finished(cfg) or importlib.import_module(f"circuitlit.run.{verb}").run(cfg)
            failed.append(cfg.fail and _status(result) == "FAILED")
        except (Exception, Stopped) as error:
            if (stop := stopping.behind(error)) is not None:
                if ranks.is_writer():
                    print(stopping.farewell(stop, cfg, original), file=sys.stderr)
                stopping.requeue(stop)
                sys.exit(128 + stop.number)
            message = explain(error, verb)
            if message is None:
                raise
            if os.getpid() != here:  # a launcher's process; Hydra raises it in ours
                raise UserError(message) from error
            mistakes.append(message)  # not raised: Hydra would print an error of its own

    try:
        words = resume.expanded(verb, argv)[1:]
        if PLUGINS not in sys.path:
            sys.path.append(PLUGINS)
        given = [argv[0], *readable(verb, [*words, *ranks.hydra_overrides()])]
        with stopping.listening(), folder.new_run_id(), _hydra_reads(given), _composed_once():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(job)()
    except Exception as error:
        if (stop := stopping.behind(error)) is not None:
            raise stop from None
        message = explain(error, verb)
        if message is None:
            raise
        mistakes.append(message)
    for message in mistakes:
        print("error:", *message.splitlines(), file=sys.stderr)  # one line, whatever characters a value has
    if mistakes:
        sys.exit(1)
    if any(failed):
        sys.exit(FAILED)


@contextmanager
def _composed_once() -> Iterator[None]:
    """Hydra composes all settings twice, first to read `hydra.mode`, which only words can set, or folders of others."""
    from hydra._internal.hydra import Hydra

    own = Hydra.get_mode
    if not any(word.startswith(("hydra.mode", "hydra.searchpath", "--config-dir", "-cd")) for word in sys.argv):
        Hydra.get_mode = lambda *_, **__: None  # what it returns then
    try:
        yield
    finally:
        Hydra.get_mode = own


@contextmanager
def _hydra_reads(given: list[str]) -> Iterator[None]:
    """Hydra reads the process's words and sends all its logs into the run's folder; after the run both are undone."""
    argv, root = sys.argv, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = given
    try:
        yield
    finally:
        sys.argv = argv
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _status(result: Any) -> str | None:
    return result.get("status") if isinstance(result, dict) else getattr(result, "status", None)


def _say_version() -> None:
    print(f"circuitlit {metadata.version('circuitlit')}")


def _quiet() -> None:
    """Silence what other packages say at import and what does not concern the user."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a letter that a terminal or a log does not know ends no run
            stream.reconfigure(errors="backslashreplace")
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    for text in (
        ".*does not have many workers.*",
        ".*no `validation_step`.*",
        r".*module\(s\) in eval mode.*",
        "Checkpoint directory.*",
        "The dirpath.*",
    ):
        warnings.filterwarnings("ignore", text)
    logging.getLogger("hydra.utils").addFilter(lambda entry: False)  # what it says is raised, too
    for name in CHATTY:
        logging.getLogger(name).addFilter(lambda entry: entry.levelno >= logging.ERROR)
