"""transformers' save_pretrained and from_pretrained of masked and sliced models, to the bit."""

import copy

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, export, load_shrunk, measure, prune_model, shrink, trace
from ignite_prune.structure import shrunk_state
from tests.models import assert_same_bits

transformers = pytest.importorskip("transformers")
IDS = {"input_ids": torch.arange(12).view(2, 6)}
SMALL = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, max_position_embeddings=16)).eval()


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, max_position_embeddings=16)
    return transformers.BertForSequenceClassification(config).eval()


def sliced(model, share):
    structure = trace(model, IDS)
    kept = {each.name: torch.arange(each.size) < round(each.size * share) for each in structure}
    return shrink(model, structure.masks(kept), IDS)


def test_a_masked_model_to_the_bit(tmp_path):
    model = llama()
    pruner = PruneHandler(model)
    pruner.step(0.8)
    saved = export.save_pretrained(model, tmp_path / "model")
    assert saved.call.startswith(f"{type(model).__name__}.from_pretrained(") and not saved.reason
    loaded = type(model).from_pretrained(saved.folder)
    assert_same_bits(dict(model.state_dict()), dict(loaded.state_dict()))
    assert measure.summary(loaded, pruner.masks).kept == measure.summary(model, pruner.masks).kept
    assert torch.equal(loaded.eval()(**IDS).logits, model(**IDS).logits)


def test_a_sliced_model_that_the_config_describes(tmp_path):
    model = llama()
    report = sliced(model, 0.5)
    saved = export.save_pretrained(model, tmp_path / "model", report.indices)
    loaded = type(model).from_pretrained(saved.folder).eval()
    assert not saved.reason and torch.equal(loaded(**IDS).logits, model(**IDS).logits)


@pytest.mark.filterwarnings("ignore:The sliced model runs, but LlamaConfig refuses its sizes")
@pytest.mark.parametrize("make, share", [(llama, 0.75), (bert, 0.5)])
def test_a_sliced_model_that_it_does_not_describe(make, share, tmp_path):
    model = make()
    report = sliced(model, share)
    with pytest.raises(ValueError, match="give the indices"):
        export.save_pretrained(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="from_pretrained cannot load this model"):
        saved = export.save_pretrained(model, tmp_path / "model", report.indices)
    assert [each.name for each in saved.folder.iterdir()] == ["shrunk.pt"] and "load_shrunk(" in str(saved)
    loaded = load_shrunk(make(), saved.folder / "shrunk.pt").eval()
    assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)
    pytest.importorskip("safetensors")
    export.save(model, tmp_path / "small.safetensors", indices=report.indices)
    again = export.load(make, tmp_path / "small.safetensors").eval()
    assert torch.equal(again(**IDS).logits, model(**IDS).logits)


def test_a_model_built_from_the_changed_config_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    model = bert()
    structure = trace(model, IDS)
    heads = {each.name: torch.arange(4) < 2 for each in structure if each.size == 4}
    report = shrink(model, structure.masks(heads), IDS)
    assert len(heads) == 2 and model.config.num_attention_heads == 2
    state = shrunk_state(model, report.indices)
    file = export.save(model, tmp_path / "small.safetensors", indices=report.indices)
    for load in (lambda fresh: load_shrunk(fresh, state), lambda fresh: export.load(fresh, file)):
        fresh = type(model)(copy.deepcopy(model.config)).eval()
        before, config = fresh(**IDS).logits, fresh.config.to_dict()
        with pytest.raises(ValueError, match="from the configuration of the unpruned one"):
            load(fresh)
        assert torch.equal(fresh(**IDS).logits, before) and fresh.config.to_dict() == config
        assert torch.equal(load(bert())(**IDS).logits, model(**IDS).logits)
    del state["sizes"]  # a file of an earlier version
    assert torch.equal(load_shrunk(bert(), state)(**IDS).logits, model(**IDS).logits)


def test_bad_arguments(tmp_path):
    model = llama()
    prune_model(model, sparsity=0.5)
    before = copy.deepcopy(model.state_dict())
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.save_pretrained(model, tmp_path / "there")
    export.save_pretrained(model, tmp_path / "there", overwrite=True)
    assert (tmp_path / "there" / "config.json").exists()
    for error, net, folder in (
        (TypeError, nn.Linear(2, 2), tmp_path / "a"),
        (FileNotFoundError, model, tmp_path / "none" / "a"),
    ):
        with pytest.raises(error):
            export.save_pretrained(net, folder)
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
    assert_same_bits(dict(before), dict(model.state_dict()))
