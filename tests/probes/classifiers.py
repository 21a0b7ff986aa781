"""Tiny classifiers that really classify: trained here, in seconds, and saved.

`manners` tells texts with the word "sir" from texts with the word "yo". `inference`
says whether a text with one of these words entails "This example is formal." or
"... informal.". Everything else that they read is noise to them.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

NOISE = ("the", "kite", "museum", "is", "open", "a", "rain", "tea", "text", ".", ",")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("sir", "yo", "this", "example", "formal", "informal", *NOISE)
LONGEST = 24


def tokenizer(*, longest: int | None = LONGEST) -> PreTrainedTokenizerFast:
    """One token a word; it knows of no longest text if `longest` is None."""
    vocab = {word: i for i, word in enumerate((*SPECIALS, *WORDS))}
    backend = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    limit = {} if longest is None else {"model_max_length": longest}
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": token for name, token in names.items()},
        **limit,
    )


def config(labels: Sequence[str], **changes: object) -> dict[str, object]:
    """A tiny configuration that calls its outputs `labels`."""
    return {
        "vocab_size": len(SPECIALS) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": LONGEST,
        # The usual 0.02 leaves so small a model linear, and unable to compare words.
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        **changes,
    }


def text_with(word: str, rng: random.Random) -> str:
    """The word somewhere in a few words of noise, known and unknown ones."""
    words = rng.choices((*NOISE, "7", "?", "qwerty"), k=rng.randint(0, 8))
    words.insert(rng.randrange(len(words) + 1), word)
    return " ".join(words)


def manners(folder: Path, labels: Sequence[str] = ("informal", "formal")) -> Path:
    """A classifier whose second label means "sir" and whose first means "yo"."""
    rng = random.Random(0)
    examples = [
        (text_with(word, rng), label)
        for label, word in enumerate(("yo", "sir"))
        for _ in range(60)
    ]
    return _trained(folder, labels, examples)


def inference(
    folder: Path, labels: Sequence[str] = ("contradiction", "neutral", "entailment")
) -> Path:
    """A model whose last label means that the text entails the hypothesis."""
    rng = random.Random(0)
    examples = [
        ((text_with(word, rng), f"This example is {label}."), 2 * (truth == label))
        for word, truth in (("sir", "formal"), ("yo", "informal"))
        for label in ("formal", "informal")
        for _ in range(60)
    ]
    return _trained(folder, labels, examples)


def _trained(
    folder: Path,
    labels: Sequence[str],
    examples: Sequence[tuple[str | tuple[str, str], int]],
) -> Path:
    """The classifier in `folder`, after as many steps as it takes to learn its task."""
    reader = tokenizer()
    batch = _encoded(reader, [text for text, _ in examples])
    targets = torch.tensor([label for _, label in examples])
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**config(labels)))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = [1.0]
        # On machines of other rounding it takes another number: 100 to 150 were seen.
        while max(losses[-10:]) > 0.01 and len(losses) < 1000:
            drawn = torch.randint(len(targets), (64,))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(**{key: rows[drawn] for key, rows in batch.items()}).logits,
                targets[drawn],
            )
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert max(losses[-10:]) <= 0.01, "the classifier has not learnt its task"
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def _encoded(
    reader: PreTrainedTokenizerFast, texts: Sequence[str | tuple[str, str]]
) -> Mapping[str, torch.Tensor]:
    return reader(list(texts), padding=True, return_tensors="pt")
