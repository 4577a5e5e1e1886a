"""The model and the tokenizer of recipes/tiny.

The tokenizer is a byte-pair encoding trained on the generated tasks; its merges may span spaces. Digits, operators and
the words that a task can vary are single tokens. Text that many answers share (the head of a function, the end of a
box) becomes a few tokens. This halves the length of what a tiny model has to write.
"""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from qwq_rl.data.tiny import code_tasks, general_tasks, math_tasks
from qwq_rl.data.tiny.sets import corpus

VOCABULARY = 626
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{% set f = tool.function %}{{ f.name }}: {{ f.parameters.properties | join(', ') }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """Return a new model for `tokenizer` in float32; the same seed gives the same weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=192,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def _lexicon() -> list[str]:
    words = [*math_tasks.NAMES, *math_tasks.ITEMS, *general_tasks.WORDS]
    words += [*general_tasks.CITIES, *general_tasks.LIKES, *general_tasks.FIELDS, *general_tasks.TOOLS]
    words += [name for parameters in general_tasks.TOOLS.values() for name in parameters]
    return [*words, *code_tasks.REDUCERS, *code_tasks.WORDS.values(), "over", "under"]


def _alphabet() -> list[str]:
    """Return the printable ASCII characters and the newline; all 256 bytes would take half of the vocabulary."""
    text = "\n" + "".join(map(chr, range(32, 127)))
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return sorted(set("".join(piece for piece, _ in pieces)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a new tokenizer with the chat template. It is trained (under a second) once a process, always the same."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unknown|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained() -> str:
    bpe = Tokenizer(models.BPE(unk_token="<|unknown|>"))
    # Longer words first: a regular expression takes the first alternative that matches.
    single_tokens = "|".join(sorted({word.strip() for word in _lexicon()}, key=lambda word: (-len(word), word)))
    split = pre_tokenizers.Split(Regex(rf"[0-9]|[-+*%<>]| ?\b(?:{single_tokens})\b"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    words = [form for word in _lexicon() for form in (word, f" {word}")]
    # Repeated, so that roles and lexicon words are frequent enough to become one token each.
    bpe.train_from_iterator(["user\n", "assistant\n", "system\n"] * 1000 + words * 300 + corpus(), trainer)
    # Not special, so that they stay in the text when special tokens are skipped.
    bpe.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    return bpe.to_str()
