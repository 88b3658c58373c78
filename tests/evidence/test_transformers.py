"""HeadImportance on transformers' models: equal to gates put on the heads by hand, per sample."""

import pytest
import torch
from torch import nn

from ignite_prune import pattern, prune_model, saliency, score

transformers = pytest.importorskip("transformers")


def bert(kind):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        attn_implementation=kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertModel(config), {"input_ids": torch.arange(20).view(2, 10)}, "*.attention.output.dense.weight", 1


def vit(kind):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8, patch_size=4,
        attn_implementation=kind,
    )  # fmt: skip
    return ViTModel(config), {"pixel_values": torch.randn(2, 3, 8, 8)}, None, 1


def gpt2(kind):
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=16, attn_implementation=kind,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return GPT2Model(config), {"input_ids": torch.arange(20).view(2, 10)}, "*.attn.c_proj.weight", 0


def llama(kind):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, attn_implementation=kind,
    )  # fmt: skip
    return LlamaModel(config), {"input_ids": torch.arange(20).view(2, 10)}, "*.self_attn.o_proj.weight", 1


def loss(output, target):
    return output.last_hidden_state.square().mean((1, 2)).mul(torch.tensor([1.0, 3.0])).mean()


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [bert, vit, gpt2, llama])
def test_heads_are_gates(make, kind):
    torch.manual_seed(0)
    model, batch, outputs, dim = make(kind)
    model.eval()
    if outputs is None:
        found = score(model, saliency=saliency.HeadImportance(normalize=False), data=[batch], loss_fn=loss)
        projections = [name for name in found if (found[name].numel() == 4 and "output" in name) or "o_proj" in name]
    else:
        chosen = saliency.HeadImportance(normalize=False)
        found = score(model, outputs, saliency=chosen, data=[batch], loss_fn=loss)
        projections = list(found)
    assert len(projections) == 2
    for name in projections:
        layer = model.get_submodule(name.rpartition(".")[0])
        expected = torch.zeros(4)
        for sample in range(2):
            gate = torch.ones(2, 4, requires_grad=True)  # a gate on each sample's heads

            def gated(module, args, gate=gate):
                x = args[0]
                return ((x.unflatten(-1, (4, -1)) * gate[:, None, :, None]).flatten(-2),)

            handle = layer.register_forward_pre_hook(gated)
            loss(model(**batch), None).backward()
            handle.remove()
            expected += gate.grad[sample].abs()  # 1/2 of the batch's mean is undone by the mean over 2 samples
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-9)
    model.zero_grad()
    masks = prune_model(
        model,
        projections,
        sparsity=0.25,
        saliency=saliency.HeadImportance(),
        pattern=pattern.Head(size=4, dim=dim),
        data=[batch],
        loss_fn=loss,
    )
    assert masks.sparsity == 0.25 and isinstance(model, nn.Module)


def test_wanda_and_sparsegpt_on_a_weight_that_lies_the_other_way_round():
    torch.manual_seed(0)
    model, batch, _, _ = gpt2("sdpa")
    name = "h.0.mlp.c_fc.weight"
    seen = []
    layer = model.get_submodule("h.0.mlp.c_fc")
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    model.eval()(**batch)
    handle.remove()
    x = seen[0].flatten(0, 1)
    found = score(model, name, saliency=saliency.Wanda(), data=[batch])[name]
    weight = layer.weight.detach()  # (in, out)
    torch.testing.assert_close(found, weight.abs() * x.norm(dim=0)[:, None], rtol=1e-4, atol=1e-6)
    masks = prune_model(model, name, sparsity=0.5, saliency=saliency.Wanda(), data=[batch])
    assert set(masks[name].sum(0).tolist()) == {8}, "half of every output's inputs"
    from ignite_prune import repair

    errors = {}
    for repairing in (None, repair.SparseGPT()):
        torch.manual_seed(0)
        fresh, batch, _, _ = gpt2("sdpa")
        before = fresh.get_parameter(name).detach().clone()
        prune_model(fresh, name, sparsity=0.5, saliency=saliency.SparseGPT(), repair=repairing, data=[batch])
        errors[repairing] = float((x @ (fresh.get_parameter(name).detach() - before)).norm())
    assert errors[repair.SparseGPT()] < errors[None]


GUIDE = """
pruning:
  approach:
    weight_compression:
      start_epoch: 0
      end_epoch: 1
      pruners:
        - !Pruner
            prune_type: gradient_sensitivity
            names: ['encoder.layer.*.attention.self.query.weight', 'encoder.layer.*.attention.self.query.bias',
                    'encoder.layer.*.attention.self.key.weight', 'encoder.layer.*.attention.self.value.weight']
            parameters: {target: 3, normalize: True, stride: 4, transpose: False, importance_inputs: ['head_mask'],
                         importance_metric: abs_gradient}
        - !Pruner
            prune_type: gradient_sensitivity
            names: ['encoder.layer.*.attention.output.dense.weight']
            parameters: {target: 3, normalize: True, stride: 4, transpose: True, importance_inputs: ['head_mask'],
                         importance_metric: abs_gradient}
        - !Pruner
            prune_type: gradient_sensitivity
            names: ['encoder.layer.*.intermediate.dense.weight', 'encoder.layer.*.intermediate.dense.bias']
            parameters: {target: 20, normalize: False, stride: 1, transpose: False, importance_inputs: [a, b],
                         importance_metric: weighted_gradient}
        - !Pruner
            prune_type: gradient_sensitivity
            names: ['encoder.layer.*.output.dense.weight']
            parameters: {target: 20, normalize: False, stride: 1, transpose: True, importance_inputs: [a, b],
                         importance_metric: weighted_gradient}
"""


def test_heads_and_neurons_go_by_the_guide_of_neural_compressor():
    from ignite.engine import Engine

    from ignite_prune import recipe

    torch.manual_seed(0)
    model, batch, _, _ = bert("sdpa")
    model.eval()
    importance = score(
        model, saliency=saliency.HeadImportance(per_sample=False), data=[batch], loss_fn=loss
    )  # the first epoch's only step, from the weights before it
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step(engine, inputs):
        optimizer.zero_grad()
        loss(model(**inputs), None).backward()
        optimizer.step()

    trainer, found = Engine(step), recipe.read(GUIDE)
    assert not found.report.not_possible and len(found.report.translated) == 4
    widths = [layer.intermediate.dense.out_features for layer in model.encoder.layer]
    attached = found.attach(
        trainer, model=model, optimizer=optimizer, loader=[batch], example_inputs=batch, loss_fn=loss, data=[batch]
    )
    query = model.encoder.layer[0].attention.self.query.weight.detach().clone()
    trainer.run([batch], max_epochs=2)
    assert min(widths) > 20
    for layer in model.encoder.layer:
        assert layer.attention.self.query.out_features == layer.attention.output.dense.in_features == 12
        assert layer.intermediate.dense.out_features == layer.output.dense.in_features == 20
    scores = importance["encoder.layer.0.attention.self.query.weight"]
    kept = sorted(scores.argsort()[1:].tolist())
    assert torch.equal(model.encoder.layer[0].attention.self.query.weight, query.view(4, 4, -1)[kept].flatten(0, 1))
    assert attached.pruner.units["encoder.layer.0.attention.self.query.weight"] == (4, 3)
