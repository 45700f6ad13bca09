"""`check` passes what is read rightly, and finds and names what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, settings
from conftest import tiny_model
from families import FAMILIES, tiny_family
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from circuitlit import Graph, ModelCheck, Subject, UserError, check_model, list_families, load_subject
from circuitlit.errors import Unchecked
from circuitlit.evaluate.check.check_model import HEADS
from circuitlit.evaluate.check.twin import float64_twin
from circuitlit.heads.attention import Heads
from circuitlit.masked.borrowed import OwnAttention, tell
from circuitlit.model import families
from circuitlit.model.bases import LLAMA, OWN
from circuitlit.model.layouts import in_turn, rotation
from circuitlit.model.trusted import key_of

WEIGHTS = "model.safetensors"


def checked(model: Any, folder: Path) -> ModelCheck:
    return check_model(model, cache_dir=str(folder))


def single(name: str):
    return (tiny_family(name) if name in FAMILIES else tiny_model(name)).float()


def test_a_check_passes_and_says_so_in_a_file(tmp_path: Path) -> None:
    found = checked(single("llama"), tmp_path)
    assert found.status == "PASSED" and found.place is found.remedy is None and not found.reasons
    assert ModelCheck.load(found.save(tmp_path / "out")) == found
    assert {one.name for one in found.identities if one.on.startswith("twin")} >= {HEADS}
    assert (tmp_path / "checks" / f"{found.key}.json").is_file()
    assert len(found.to_frame()) == len(found.identities) == 13


def test_a_twin_has_every_kind_of_layer(tmp_path: Path) -> None:
    layers = ["full_attention"] * 5 + ["sliding_attention", "full_attention"]
    model = tiny_family("cohere2", num_hidden_layers=7, layer_types=layers, sliding_window=16)
    twin = float64_twin(Subject(model))
    assert twin.graph.n_layers == 6 and twin.model.config.layer_types == layers[:6]
    assert twin.model.dtype == torch.float64


WRONG: dict[str, tuple[str, Any, str, str]] = {
    "a wrong rotation": ("llama", replace(LLAMA, rotate=rotation("cohere")), "layer 0, heads", "rotation by halves"),
    "no rotation": ("smollm3", LLAMA, "layer 1, heads", "no rotation in this layer"),
    "a forgotten factor": (
        "granite",
        lambda config: replace(families._granite(config), write_factor=1.0),
        "layer 0, attention",
        "attention's write ×0.4",
    ),
    "a forgotten factor on embeddings": (
        "granite",
        lambda config: replace(families._granite(config), embed_factor=1.0),
        "the embeddings",
        "the embeddings ×3",
    ),
    "a swapped split": (
        "gpt_neox",
        lambda config: replace(families._neox(config), split=in_turn),
        "layer 0, heads",
        "group by group",
    ),
    "keys taken for values": (
        "qwen2",
        replace(LLAMA, projections=("q_proj", "v_proj", "k_proj")),
        "layer 0, heads",
        "taken as q, v, k",
    ),
    "another scale": (
        "gpt2",
        lambda config: replace(families.GPT2, scale=1.0),
        "layer 0, heads",
        "0.4082 as the",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_read_wrongly_is_found_and_named(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, row, place, remedy = WRONG[fault]
    monkeypatch.setitem(families.ANATOMIES, name, row)
    found = checked(single(name), tmp_path)
    assert found.status == "FAILED" and not (tmp_path / "checks").exists()
    assert found.place is not None and found.place.startswith(place)
    assert found.remedy is not None and remedy in found.remedy


def patched(change: Callable) -> Any:
    """A Llama whose second attention has another forward than its class."""
    model: Any = single("llama")
    attention = model.model.layers[1].self_attn
    attention.forward = change.__get__(attention)
    return model


def colder(self, hidden_states, **more):
    self.scaling *= 1.001
    return type(self).forward(self, hidden_states * 1.5, **more)


def same(self, hidden_states, **more):
    return type(self).forward(self, hidden_states, **more)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths.cache_dir=\S+file cannot be written"):
        checked(single("llama"), tmp_path / "file")


def test_where_no_home_is_known_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)  # as in a container with a user that it does not know
    with pytest.raises(UserError, match=r"paths.cache_dir=~/cache cannot be written \(no home is known; set HOME\)"):
        checked(single("llama"), Path("~/cache"))
    assert not list(tmp_path.iterdir())


def test_a_patched_forward_is_found(tmp_path: Path) -> None:
    model = patched(colder)
    with pytest.raises(Unchecked, match=r"needs a check first, because model.layers.1.self_attn has a forward"):
        load_subject(model, cache_dir=str(tmp_path))
    found = checked(model, tmp_path)
    assert found.status == "FAILED" and found.place == "layer 1, heads' results"
    with pytest.raises(UserError, match="forward of its own"):
        Subject(model)


def test_a_patch_that_changes_nothing_runs_once_checked(tmp_path: Path) -> None:
    model = patched(same)
    assert checked(model, tmp_path).status == "PASSED"
    subject = load_subject(model, cache_dir=str(tmp_path))
    assert subject.graph.n_edges
    with pytest.raises(Unchecked):  # other weights, other code
        load_subject(patched(colder), cache_dir=str(tmp_path))
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(Unchecked):
        load_subject(model, cache_dir=str(tmp_path))


def turned(by: Any) -> Callable[..., Any]:
    """A forward that differs from another one by what it holds alone."""
    return lambda self, hidden_states, **more: by(hidden_states) if callable(by) else hidden_states * by


def negated(_self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states.neg()


def rooted(_self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states.sqrt()


def test_a_check_of_one_forward_is_none_of_another() -> None:
    """Names, and what a function holds, tell apart what equal code does; the same made anew is the same."""
    held = (1.0, 2.0, torch.ones(3), torch.zeros(3), torch.sqrt, torch.neg, lambda x: x)
    made = [negated, rooted, *map(turned, held)]
    assert len({key_of(patched(one)) for one in made}) == len(made)
    assert key_of(patched(turned(2.0))) == key_of(patched(turned(2.0)))


def test_what_goes_around_a_module_is_refused(tmp_path: Path) -> None:
    model: Any = single("llama")
    block = model.model.layers[1]
    block.forward = lambda hidden_states, **more: hidden_states
    with pytest.raises(UserError, match=r"ran as the modules that the anatomy names"):
        checked(model, tmp_path)


class Louder(LlamaForCausalLM):
    """Code that comes with a model."""


def test_a_class_of_ones_own_needs_a_check(tmp_path: Path) -> None:
    source: Any = single("llama")
    model = Louder(source.config)
    with pytest.raises(Unchecked, match="its class Louder is not the library's own"):
        load_subject(model, cache_dir=str(tmp_path))
    assert checked(model, tmp_path).status == "PASSED"
    load_subject(model, cache_dir=str(tmp_path))


def test_borrowed_attention_needs_one_check_for_all_weights(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="borrowed"):
        load_subject(single("olmo2"), cache_dir=str(tmp_path))
    assert checked(single("olmo2"), tmp_path).status == "PASSED"
    other = load_subject(tiny_family("olmo2", seed=1).float(), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="head scores do not see"):
        Heads(other)
    with pytest.raises(Unchecked):  # another configuration
        load_subject(tiny_family("olmo2", rope_theta=7.0).float(), cache_dir=str(tmp_path))


def test_an_unlisted_reader_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AFMoE's gate is a reader that the row does not list: it reads NaN."""
    numbers = {**FAMILIES["exaone_moe"], "layer_types": ["sliding_attention", "full_attention"], "num_dense_layers": 1}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("afmoe", **numbers))
    names = {"mlp_norm": "pre_mlp_layernorm", "post_norm": "post_attention_layernorm", "mlp": "post_mlp_layernorm"}
    row = replace(OWN, **names, mlp_chain=("mlp", "post_mlp_layernorm"), embed_factor=24**0.5)
    monkeypatch.setitem(families.ANATOMIES, "afmoe", replace(row, embed_factor=1.0))
    found = checked(model, tmp_path)
    by_name = {one.name: one.difference for one in found.identities if one.on.startswith("own")}
    assert found.status == "FAILED" and by_name["all masks at 1 give the model"] == float("inf")


def test_borrowing_gives_the_module_back() -> None:
    subject = Subject(tiny_family("olmo2"))
    attention = subject.anatomy.blocks(subject.model)[0].get_submodule("self_attn")
    before = dict(attention._modules)
    told = tell(subject, torch.ones(1, 3, dtype=torch.long))
    own = OwnAttention(subject.anatomy, attention, [24, 12, 12], subject.graph)
    q, kv = torch.ones(1, 4, 3, 6, dtype=torch.float64), torch.ones(1, 2, 3, 6, dtype=torch.float64)
    own(q, kv, kv, told[0])
    with pytest.raises((RuntimeError, TypeError)):
        own(q, kv, kv, replace(told[0], kwargs={}))
    assert attention._modules == before


def without_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny model of a type that the table does not know."""
    monkeypatch.setattr(families, "GUESSED", set())
    rows = {kind: row for kind, row in families.ANATOMIES.items() if kind != name.partition(":")[0]}
    for module in ("families", "guess", "load"):
        monkeypatch.setattr(f"circuitlit.model.{module}.ANATOMIES", rows)
    monkeypatch.setattr("circuitlit.evaluate.check.probes.ANATOMIES", rows)
    for module in ("model.guess", "model.trusted", "evaluate.check.probes"):
        monkeypatch.setattr(f"circuitlit.{module}.GUESSED", families.GUESSED)
    return single(name)


GUESSES = {
    "gpt_neox": {},
    "llama": {},
    "olmo2": {"joint": True},
    "granite": {"embed_factor": 3.0, "write_factor": 0.4},
    "gptj": {},
    "codegen": {},
    "gpt_oss": None,  # whose MLP gives more than it writes
    "bloom": None,  # whose MLP adds the stream
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_guess_is_taken_only_if_it_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = without_a_row(name, monkeypatch)
    with pytest.raises(Unchecked, match="guessed from names"):
        load_subject(model, cache_dir=str(tmp_path))
    assert name not in families.ANATOMIES
    if GUESSES[name] is None:
        with pytest.raises(UserError, match="no anatomy"):
            checked(model, tmp_path)
        return
    found = checked(model, tmp_path)
    assert found.status == "PASSED" and found.guess is not None
    assert found.guess["changes"] == pytest.approx(GUESSES[name])
    families.forget_guess(name)
    assert load_subject(model, cache_dir=str(tmp_path)).graph.n_edges


@pytest.fixture
def no_guesses_left() -> Iterator[None]:
    yield
    families.forget_guess("mine")


@pytest.mark.slow
@pytest.mark.usefixtures("no_guesses_left")
@pytest.mark.parametrize("gate", [False, True])
def test_code_that_comes_with_a_model_runs_once_checked(
    gate: bool, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another decoder, its anatomy guessed: its factor is found by a probe; with a gate no anatomy holds."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(local / "model", tmp_path / "model")
    shutil.copy(Path(__file__).parent / "data" / "modeling_mine.py", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    names = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": names, "gate": gate}))
    own = AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=True)
    torch.manual_seed(0)
    mine = AutoModelForCausalLM.from_config(own, trust_remote_code=True)
    save_file(mine.state_dict(), tmp_path / "model" / WEIGHTS, {"format": "pt"})
    more = [
        "model.trust_remote_code=true",
        f"paths.cache_dir={tmp_path}",
        f"model.path={tmp_path}/model",
        "logger=none",
    ]
    words = [word for word in settings(local, tmp_path / "first") if "model.path" not in word] + more
    with pytest.raises(SystemExit):
        call(*words)
    assert "model.trust_remote_code=true" in capsys.readouterr().err
    checks = [word.replace("first", "check") for word in words if "task" not in word]
    if gate:
        with pytest.raises(SystemExit):
            call(*checks, verb="check")
        assert "no anatomy that the names" in capsys.readouterr().err
        return
    call(*checks, verb="check")
    found = ModelCheck.load(tmp_path / "check")
    assert found.guess is not None and found.guess["changes"] == {"write_factor": pytest.approx(0.22)}
    assert len(found.reasons) == 3
    call(*[word.replace("first", "second") for word in words])
    assert json.loads((tmp_path / "second" / "result.json").read_text())["n_edges_total"] == Graph(2, 4, 4).n_edges


def test_the_list_has_every_family() -> None:
    found = list_families()
    assert (
        len(found.runs) >= 50
        and found.runs["llama"] == "fast"
        and found.runs["olmo2"] == "borrowed"
        and "recurrence" in found.refused["mamba"]
    )
    assert len(found.to_frame()) == len(found.runs) + len(found.refused)


@pytest.mark.long
def test_check_from_the_command_line(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain = [word for word in settings(local, tmp_path / "out", f"paths.cache_dir={tmp_path}") if "task" not in word]
    call(*plain, verb="check")
    assert json.loads((tmp_path / "out" / "check.json").read_text())["status"] == "PASSED"
    call(*settings(local, tmp_path / "pairs", f"paths.cache_dir={tmp_path}"), verb="check")
    assert json.loads((tmp_path / "pairs" / "check.json").read_text())["tokens"] == 6
    call(f"hydra.run.dir={tmp_path / 'list'}", "families=true", verb="check")
    assert "mamba" in json.loads((tmp_path / "list" / "families.json").read_text())["refused"]
    monkeypatch.setitem(families.ANATOMIES, "gpt2", lambda config: replace(families.GPT2, scale=1.0))
    with pytest.raises(SystemExit) as end:
        call(*[word.replace("out", "wrong") for word in plain], verb="check")
    assert end.value.code == 1
    assert "not read rightly, first at layer 0, heads' results; what mends it: 0.3536" in capsys.readouterr().err


def test_verbs_refuse_with_the_command_of_the_check(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("circuitlit.model.trusted.LIBRARIES", ("nothing",))
    for verb in ("behaviour", "attribute"):
        with pytest.raises(SystemExit):
            call(*settings(local, tmp_path / verb, f"paths.cache_dir={tmp_path}"), verb=verb)
        assert (
            f"python -m circuitlit check model=local model.dtype=float32 model.path={local}" in capsys.readouterr().err
        )
    call(*settings(local, tmp_path / "check", f"paths.cache_dir={tmp_path}"), verb="check")
    call(*settings(local, tmp_path / "again", f"paths.cache_dir={tmp_path}"), verb="behaviour")


@pytest.mark.slow
def test_smollm2_passes(tmp_path: Path) -> None:
    found = check_model("smollm2")
    assert found.status == "PASSED" and found.noise < 1e-4
    assert AutoConfig.for_model("llama").model_type == found.model_type
