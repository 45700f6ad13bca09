"""Two small tokenizers that cut texts as the two families of real ones do; they know the words of every task."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitlit.model.packages import packaged_weights
from circuitlit.tasks.arithmetic import TEMPLATES
from circuitlit.tasks.boolean import INSTRUCTION, SHOTS
from circuitlit.tasks.docstring import ARGUMENTS, LAYOUTS, WORDS
from circuitlit.tasks.docstring import NAMES as FUNCTIONS
from circuitlit.tasks.gender_pronoun import NOUNS as PEOPLE
from circuitlit.tasks.gender_pronoun import QUALITIES
from circuitlit.tasks.gender_pronoun import SENTENCES as TAGS
from circuitlit.tasks.greater_than import NOUNS as EVENTS
from circuitlit.tasks.greater_than import SENTENCES as SPANS
from circuitlit.tasks.ioi import NAMES, OBJECTS, PLACES, templates
from circuitlit.tasks.names import BOYS, GIRLS
from circuitlit.tasks.sva import NOUNS as SUBJECTS
from circuitlit.tasks.sva import SENTENCES as CLAUSES
from circuitlit.tasks.sva import THINGS, VERBS


def corpus() -> list[str]:
    """Templates of all tasks, and their words and two-digit numbers often enough to become tokens."""
    texts = [*templates().values(), *TEMPLATES.values(), *LAYOUTS.values(), INSTRUCTION, SHOTS, "\nValue:"]
    texts += [*TAGS.values(), *SPANS.values(), *CLAUSES.values()]
    groups = [NAMES, PLACES, OBJECTS, ARGUMENTS, WORDS, FUNCTIONS, BOYS, GIRLS, QUALITIES, PEOPLE, EVENTS]
    groups += [SUBJECTS, THINGS]
    words = {word for group in groups for word in group.split()} | {verb for both in VERBS for verb in both}
    words |= {f"{noun}s" for noun in (SUBJECTS + " " + THINGS).split()}
    words |= {"he", "she", "True", "False", "not", "and", "or", "+", "-", "drink"}
    numbers = [f"{number:02d}" for number in range(100)]
    texts += [f"and {number}{number}" for number in numbers] * 5
    return texts * 5 + NAMES.split() * 5 + [f"and {word}" for word in sorted(words)] * 5


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def like_gpt2() -> PreTrainedTokenizerFast:
    """As GPT-2's: the space belongs to the word after it, two digits are one token, no special token is added."""
    tokenizer = Tokenizer(models.BPE())
    in_twos = pre_tokenizers.Split(Regex(r" ?\d\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([in_twos, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet))
    return wrap(tokenizer)


def like_llama() -> PreTrainedTokenizerFast:
    """As Llama's: a space before the first word, single digits; it adds an end token as well as a beginning."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first")
    digits = pre_tokenizers.Digits(individual_digits=True)
    lines = pre_tokenizers.Split("\n", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, lines, digits, pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=8000, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def byte_bpe() -> PreTrainedTokenizerFast:
    return like_gpt2()


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    return like_llama()


@pytest.fixture(params=["byte_bpe", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def packaged() -> PreTrainedTokenizerBase:
    """SmolLM2's, as it was converted with the weights: to read it from the packaged file takes seconds."""
    return AutoTokenizer.from_pretrained(packaged_weights("smollm2", Path("~/.cache/circuitlit").expanduser())[0])
