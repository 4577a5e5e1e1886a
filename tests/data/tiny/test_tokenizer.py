"""The tokenizer of recipes/tiny: nothing of a task is lost in it, and it is the same wherever it is built."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from qwq_rl.data.tiny import sets
from qwq_rl.data.tiny.general_tasks import CITIES, LIKES, WORDS
from qwq_rl.data.tiny.math_tasks import NAMES
from qwq_rl.data.tiny.model import MARKERS, SPECIAL, VOCABULARY, build_tokenizer

BUILD = """
import hashlib
from qwq_rl.data.tiny.model import build_tokenizer
tokenizer = build_tokenizer()
print(hashlib.sha256((tokenizer.backend_tokenizer.to_str() + tokenizer.chat_template).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@cache
def texts(name: str) -> list[str]:
    found = []
    for row in sets.rows(name):
        found += [message["content"] for message in row.get("prompt") or row["messages"]]
        found += [row[key] for key in ("solution", "chosen", "rejected") if row.get(key)]
    return found


@pytest.mark.parametrize(
    "name", ["final", "harder", "preferences", *(f"{name}_demonstrations" for name in sets.DOMAINS)]
)
def test_every_text_of_a_set_survives(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    some = texts(name)[::5]

    encoded = tokenizer(some, add_special_tokens=False)["input_ids"]

    assert tokenizer.batch_decode(encoded, skip_special_tokens=False) == some
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)


def test_it_is_the_same_in_another_process_with_another_hash_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    here = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    seed = "2" if os.environ.get("PYTHONHASHSEED") != "2" else "1"

    there = subprocess.run(
        [sys.executable, "-c", BUILD],
        env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    assert there == hashlib.sha256(here.encode()).hexdigest()


@pytest.mark.parametrize("text", [*MARKERS, *SPECIAL, *"0123456789", *NAMES, *WORDS, *CITIES, *LIKES])
def test_markers_digits_and_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def test_thinking_markers_are_still_there_when_special_tokens_are_skipped(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("<think>\n1</think>\n2<|im_end|>", add_special_tokens=False)["input_ids"]

    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>\n1</think>\n2"


def test_a_digit_is_never_part_of_a_longer_token(tokenizer: PreTrainedTokenizerFast) -> None:
    with_digits = [token for token in tokenizer.get_vocab() if any(c.isdigit() for c in token)]

    assert sorted(with_digits) == list("0123456789")


def test_the_vocabulary_is_full(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCABULARY


def test_padding_is_not_the_end_of_a_response(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|im_end|>"
