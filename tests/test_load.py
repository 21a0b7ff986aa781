"""What can be loaded, what is refused and why, and the fingerprint of a model."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import D_MODEL, D_VOCAB, borrowed, ids_and_mask, network, tiny
from tests.models import tokenizer as tiny_tokenizer

from steergauge.errors import CannotLoadModel, InputError, ModelError, NoTokenizer
from steergauge.loading import fingerprint, load


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a whole tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    network("llama").save_pretrained(folder)
    tiny_tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of the folder that a test may damage."""
    return shutil.copytree(saved, tmp_path / "broken")


def test_a_saved_folder_is_the_model_that_was_saved(saved):
    lm = load(str(saved), device="cpu")
    ids, mask = ids_and_mask(7, 3)
    original = tiny("llama")
    assert torch.equal(lm.logits(ids, mask), original.logits(ids, mask))
    assert (lm.num_layers, lm.d_model, lm.d_vocab) == (4, D_MODEL, D_VOCAB)
    assert lm.fingerprint == original.fingerprint
    assert lm.name == str(saved)
    assert lm.tokenizer.chat_template == tiny_tokenizer(chat=True).chat_template
    text = "Hello there, you."
    assert lm.tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_half_precision_weights_are_widened_exactly(tmp_path):
    model = network("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lm = load(str(tmp_path), device="cpu")
    assert lm.dtype == torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], weight.float())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_law_is_proved_in_half_precision_too(saved, dtype):
    lm = load(str(saved), dtype=dtype, device="cpu")
    assert lm.dtype == getattr(torch, dtype)
    # 0.0 is measured; half precision resolves logits near 1 to 0.004.
    assert lm.prove(again=True) < 0.01


def test_a_folder_without_a_tokenizer_is_refused(broken):
    for file in broken.glob("*token*"):
        file.unlink()
    with pytest.raises(NoTokenizer, match=r"no tokenizer file.*save_pretrained"):
        load(str(broken))


def test_a_folder_with_a_damaged_tokenizer_is_refused(broken):
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(NoTokenizer, match="no tokenizer could be loaded"):
        load(str(broken))


def test_truncated_weights_are_refused(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CannotLoadModel, match="could not be loaded"):
        load(str(broken))


def test_weights_that_are_missing_in_part_are_refused(broken):
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotLoadModel, match=r"layers\.2\.mlp\.up_proj"):
        load(str(broken))


def test_a_folder_without_a_config_is_refused(broken):
    (broken / "config.json").unlink()
    with pytest.raises(CannotLoadModel, match=r"no config\.json"):
        load(str(broken))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CannotLoadModel, match="there is no model in the folder"):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["no-such-model-at-all", "no such/model", "a/b/c"])
def test_a_nonsense_id_is_no_loadable_model(name):
    with pytest.raises(CannotLoadModel, match=name):
        load(name)


def test_a_model_in_memory_needs_its_tokenizer():
    with pytest.raises(NoTokenizer, match="without a tokenizer"):
        load(network("llama"))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ModelError, match="training mode"):
        load(network("llama").train(), tokenizer=tiny_tokenizer())


def test_a_copy_in_bfloat16_has_the_same_fingerprint():
    model = network("llama")
    assert fingerprint(model) == fingerprint(copy.deepcopy(model).to(torch.bfloat16))
    assert fingerprint(model) == fingerprint(network("llama"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_fingerprint_is_of_the_stored_weights_in_every_precision(saved, dtype):
    lm = load(str(saved), dtype=dtype, device="cpu")
    assert lm.dtype == getattr(torch, dtype)
    assert lm.fingerprint == tiny("llama").fingerprint


def test_an_unknown_precision_is_refused_with_the_known_ones(saved):
    with pytest.raises(InputError, match=r"'float31'.*float32, bfloat16"):
        load(str(saved), dtype="float31")


def test_a_finetune_has_another_fingerprint():
    model = network("llama")
    before = fingerprint(model)
    with torch.no_grad():
        # One matrix of one block, moved by 1 %.
        model.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(model) != before


def test_other_weights_and_other_families_have_other_fingerprints():
    models = [network("llama"), network("llama", seed=1), network("qwen3")]
    assert len({fingerprint(model) for model in models}) == 3


def test_a_model_in_memory_is_named_by_its_class_where_it_has_no_name():
    assert borrowed(network("gpt2")).name == "GPT2LMHeadModel"
