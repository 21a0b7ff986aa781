"""The loss of a prompt is a divergence known by hand, on text and on tokens."""

from dataclasses import replace

import pytest
import torch
from tests import planted
from tests.models import tiny

from steergauge.errors import BadPrompts, InputError
from steergauge.generation import Decoding, generate
from steergauge.intervention import Ablate, Add, Scope
from steergauge.prompts import Text, encode
from steergauge.reachability.objective import (
    JOINT,
    Target,
    aimed,
    context_length,
    loss,
    text_of,
)
from steergauge.reachability.slots import (
    embedding_losses,
    frame_of,
    placed,
    plain_tokens,
    promised_gains,
    reads_back,
    slots,
    token_losses,
)
from steergauge.reachability.soft_prefix import embedded_tokens
from steergauge.scoring import Continuation, sequence_kl
from steergauge.vector import Site, SteeringVector

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3", "gpt_neox")
"""With and without biases, rotary angles, scaled embeddings, sliding windows."""

TEXTS = ("the tale of moss", "seas", "hot irons melt")
OTHER_KERNELS = 1e-4
"""Nats. Rows of other lengths and from embeddings take other kernels: float32 noise in
logits of size 1 to 10, summed over a few tokens; seen up to 1e-5."""


def step(lm, layer: int = 1) -> Add:
    generator = torch.Generator().manual_seed(0)
    return Add(
        SteeringVector(torch.randn(lm.d_model, generator=generator), Site(layer))
    )


def target_of(lm, texts=TEXTS, *, arm=None, prompt="", chat=None, tokens=5) -> Target:
    drawn = generate(
        lm,
        [prompt + text for text in texts],
        {"": arm},
        decoding=Decoding(max_new_tokens=tokens),
        chat=chat,
    )
    rows = [(x, one.token_ids) for x, one in zip(texts, drawn, strict=True)]
    return aimed(lm, rows, arm, prompt=prompt, chat=chat)


def slow_loss(lm, target: Target, prompt: str) -> list[float]:
    """Token by token, each text alone, through plain transformers."""
    found = []
    for shown in target.texts:
        ids, _ = encode(lm, Text(prompt + shown.text), chat=target.chat)
        total = 0.0
        for k, token in enumerate(shown.response_ids):
            with torch.no_grad():
                q = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            p = (shown.logits[k].double() / target.temperature).log_softmax(-1)
            q = (q.double() / target.temperature).log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
            ids = [*ids, token]
        found.append(total)
    return found


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_divergence_computed_token_by_token(family, chat):
    lm = tiny(family, chat=True)
    target = target_of(lm, arm=step(lm), chat=chat)
    for prompt in ("", "rather odd\n"):
        found = loss(lm, target, prompt)
        assert found == pytest.approx(slow_loss(lm, target, prompt), abs=OTHER_KERNELS)
        # Not vacuous: the target differs from the model behind either prompt.
        assert found.min() > 1e-2


def test_temperature_divides_both_logits():
    lm = tiny("llama")
    cold = target_of(lm, arm=step(lm))
    warm = Target(cold.texts, cold.chat, 2.0)
    found = loss(lm, warm, "odd\n")
    assert found == pytest.approx(slow_loss(lm, warm, "odd\n"), abs=OTHER_KERNELS)
    assert abs(found - loss(lm, cold, "odd\n")).min() > 1e-3


@pytest.mark.parametrize("kind", ["add", "add everywhere", "ablate", "ablate blocks"])
def test_without_a_prompt_the_loss_is_the_sequence_divergence_of_the_arm(kind):
    lm = tiny("llama")
    vector = step(lm).vector
    arm = {
        "add": Add(vector),
        "add everywhere": Add(vector, scope=Scope.ALL),
        "ablate": Ablate(vector),
        "ablate blocks": Ablate(vector, layers=(0, 2)),
    }[kind]
    target = target_of(lm, arm=arm)
    rows = [
        Continuation(encode(lm, Text(shown.text))[0], shown.response_ids)
        for shown in target.texts
    ]
    wanted = sequence_kl(lm, rows, arm, {"none": None})["none"]
    assert wanted.min() > 1e-3
    assert loss(lm, target, "") == pytest.approx(wanted, abs=OTHER_KERNELS)


@pytest.mark.parametrize("chat", [True, False])
def test_a_hidden_prompt_has_no_loss_and_others_have(chat):
    lm = tiny("llama", chat=True)
    target = target_of(lm, prompt="melted\n", chat=chat)
    # The same rows in the same batch: nothing to round differently.
    assert loss(lm, target, "melted\n").tolist() == [0.0] * len(TEXTS)
    assert loss(lm, target, "").min() > 1e-2
    assert loss(lm, target, "moss\n").min() > 1e-3


def test_a_target_without_texts_or_temperature_is_refused():
    with pytest.raises(InputError, match="0 texts"):
        Target([])
    lm = tiny("llama")
    with pytest.raises(InputError, match="temperature 0"):
        Target(target_of(lm).texts, temperature=0.0)


def test_a_response_without_tokens_has_no_loss():
    lm = tiny("llama")
    target = aimed(lm, [("seas", ()), ("moss", (9, 10))], step(lm))
    found = loss(lm, target, "odd\n")
    assert found[0] == 0
    assert found[1] > 1e-2
    frames = [frame_of(lm, shown.text) for shown in target.texts]
    tokens = lm.tokenizer("odd", add_special_tokens=False)["input_ids"]
    spaces = slots(lm, target, frames, length=len(tokens))
    by_tokens = token_losses(lm, spaces, torch.tensor([tokens]))
    assert float(by_tokens) == pytest.approx(found.mean(), abs=OTHER_KERNELS)


@pytest.mark.parametrize("chat", [True, False])
def test_the_frame_holds_all_of_a_row_but_the_prompt(chat):
    lm = tiny("llama", chat=True)
    for text in TEXTS:
        frame = frame_of(lm, text, chat=chat)
        for prompt in ("odd", "the moon is"):
            own = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            row, _ = encode(lm, Text(prompt + JOINT + text), chat=chat)
            assert frame.around(own) == row
            assert len(row) == len(frame.before) + len(own) + len(frame.after)
    # The template's own tokens stand in front, or nothing does.
    user = lm.tokenizer.convert_tokens_to_ids("<user>")
    assert (user in frame.before) is chat


def test_a_tokenizer_that_forgets_what_it_is_given_is_refused():
    class Deaf:
        all_special_ids = ()
        chat_template = None

        def __len__(self):
            return 100

        def get_added_vocab(self):
            return {}

        def decode(self, ids):
            return "".join(chr(97 + i % 26) for i in ids)

        def __call__(self, text, **_):
            several = isinstance(text, list)
            return {"input_ids": [[1, 2, 3] for _ in text] if several else [1, 2, 3]}

    lm = replace(tiny("llama"), tokenizer=Deaf())
    with pytest.raises(BadPrompts, match="no token"):
        frame_of(lm, "moss")


def test_tokens_that_their_text_does_not_give_back_do_not_read_back():
    lm = tiny("llama")
    frame = frame_of(lm, "moss")
    (joined,) = lm.tokenizer("th", add_special_tokens=False)["input_ids"]
    apart = [
        lm.tokenizer(letter, add_special_tokens=False)["input_ids"][0]
        for letter in "th"
    ]
    assert text_of(lm, [joined]) == text_of(lm, apart)
    assert reads_back(lm, [joined], frame, text="moss")
    assert not reads_back(lm, apart, frame, text="moss")


def test_plain_tokens_are_those_that_can_be_typed():
    lm = tiny("llama")
    plain = plain_tokens(lm)
    assert not set(plain) & set(lm.tokenizer.all_special_ids)
    assert lm.tokenizer.all_special_ids
    assert max(plain) < lm.d_vocab


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_in_open_places_have_the_loss_of_their_text(family):
    lm = tiny(family, chat=True)
    target = target_of(lm, arm=step(lm))
    frames = [frame_of(lm, shown.text) for shown in target.texts]
    words = ("the tar", "she has")
    tokens = [
        lm.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words
    ]
    lengths = {len(ids) for ids in tokens}
    assert len(lengths) == 1, tokens
    spaces = slots(lm, target, frames, length=lengths.pop())
    by_tokens = token_losses(lm, spaces, torch.tensor(tokens)).tolist()
    by_text = [loss(lm, target, word + JOINT).mean() for word in words]
    assert by_tokens == pytest.approx(by_text, abs=OTHER_KERNELS)
    assert abs(by_text[0] - by_text[1]) > 1e-2
    for ids, one in zip(tokens, by_text, strict=True):
        soft = embedding_losses(lm, spaces, embedded_tokens(lm, ids)).mean()
        assert float(soft) == pytest.approx(one, abs=OTHER_KERNELS)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_promised_gain_is_the_slope_of_the_loss_towards_a_token(family):
    """In float64, by central differences along the way from one token to another."""
    lm = tiny(family, dtype=torch.float64)
    target = target_of(lm, arm=step(lm))
    frames = [frame_of(lm, shown.text) for shown in target.texts]
    prompt = lm.tokenizer("a man", add_special_tokens=False)["input_ids"]
    spaces = slots(lm, target, frames, length=len(prompt))
    gains = promised_gains(lm, spaces, prompt)
    assert gains.shape == (len(prompt), lm.d_vocab)
    here, share = embedded_tokens(lm, prompt), 1e-3
    for place, token in [(0, 50), (1, 120), (2, 7)]:
        way = torch.zeros_like(here)
        way[place] = embedded_tokens(lm, [token])[0] - here[place]
        with torch.no_grad():
            ends = [
                float(embedding_losses(lm, spaces, here + sign * share * way).mean())
                for sign in (1, -1)
            ]
        slope = (ends[0] - ends[1]) / (2 * share)
        # Parts of these families compute in float32 whatever the model's precision.
        assert float(gains[place, token]) == pytest.approx(-slope, rel=2e-2, abs=1e-4)
        assert abs(slope) > 1e-3
    same = gains[range(len(prompt)), prompt]
    # What is already there promises nothing, but for rounding.
    assert float(same.abs().max()) < 1e-9 + 1e-6 * float(gains.abs().max())


def test_rows_longer_than_the_context_are_refused():
    lm = planted.planted()
    frames = [frame_of(lm, "lake moon")]
    placed(lm, frames, [()], length=30)
    with pytest.raises(InputError, match="reads 32 at most"):
        placed(lm, frames, [()], length=31)
    assert context_length(lm) == 32
