"""The shapes of other tools' files, each read into a recipe that loads again, and a report that leaves nothing out."""

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn
from torch.nn.utils import prune as torch_prune

from ignite_prune import recipe
from ignite_prune.recipe.rules import RegexRule

SPARSEML = """
num_epochs: &num_epochs 10
num_epochs: 12
stabilization_epochs: 1.0
pruning_epochs: eval(3 * (stabilization_epochs + 2))

training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: eval(stabilization_epochs + pruning_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: *num_epochs
    lr_func: cosine
    init_lr: 0.1
    final_lr: 0.0
  - !SetLearningRateModifier {start_epoch: 0, learning_rate: 0.1}

pruning_modifiers:
  - !GMPruningModifier
      init_sparsity: 0.05
      final_sparsity: 0.8
      start_epoch: eval(stabilization_epochs)
      end_epoch: eval(pruning_epochs)
      update_frequency: 0.5
      params: [re:features.*.conv.*.weight, module.classifier.weight]
      leave_enabled: True
      inter_func: inverse_cubic
      mask_type: [1, 4]
      global_sparsity: True
      log_types: __ALL__
  - !ConstantPruningModifier
      start_epoch: 9.0
      params: __ALL_PRUNABLE__

quantization_modifiers:
  - !QuantizationModifier {start_epoch: 9.5}
  - !DistillationModifier {hardness: 0.5, temperature: 2.0}
  - !PrunningModifier {start_epoch: 1}
"""


def outcomes(reading):
    return {item.what: (item.outcome, item.line) for item in reading.report}


def test_sparseml_is_read_and_reported_line_by_line():
    found = recipe.read(SPARSEML)
    made = found.recipe
    assert made.epochs == 10.0
    groups = made.prune.handler
    assert groups.params == [RegexRule("features.*.conv.*.weight"), "module.classifier.weight"]
    assert (groups.schedule.begin, groups.schedule.every, groups.schedule.horizon) == (1.0, 0.5, 9.0)
    assert groups.schedule.schedule.power == 1 / 3 and groups.schedule(0.5) == 0.0 and groups.schedule(1) == 0.05
    assert groups.pattern.shape == (1, 4) and type(groups.allocation).__name__ == "Global"
    assert outcomes(found) == {
        "num_epochs": ("skipped", 2),
        "EpochRangeModifier": ("translated", 8),
        "LearningRateFunctionModifier": ("handed on", 11),
        "SetLearningRateModifier": ("handed on", 17),
        "GMPruningModifier": ("translated", 20),
        "GMPruningModifier.leave_enabled": ("skipped", 27),
        "GMPruningModifier.log_types": ("skipped", 31),
        "QuantizationModifier": ("handed on", 37),
        "DistillationModifier": ("handed on", 38),
        "PrunningModifier": ("not possible", 39),
        "ConstantPruningModifier": ("translated", 32),
    }
    assert "CosineAnnealingScheduler(optimizer, 'lr', 0.1, 0.0" in str(found.report)
    assert recipe.load(made.dump()).dump() == made.dump()


def test_markdown_is_read_with_lines_of_the_file(tmp_path):
    path = tmp_path / "recipe.md"
    path.write_text(f"---\n# front\n{SPARSEML}\n---\n\n# ResNet\n\n```bash\nls\n```\n")
    assert outcomes(recipe.read(path))["GMPruningModifier"] == ("translated", 22)
    path.write_text(f"# ResNet\n\nWords: more.\n\n```yaml\n{SPARSEML}```\n\n```yaml\n{SPARSEML}```\n")
    found = outcomes(recipe.read(path))
    assert found["GMPruningModifier"] == ("translated", 25) and found["another block"][0] == "skipped"


STAGES = """
sparsity_stage:
  run_type: oneshot
  sparsity_modifiers:
    SparseGPTModifier:
      sparsity: 0.5
      mask_structure: 1:4
      block_size: 64
      dampening_frac: 0.05
      sequential_update: true
      targets: ['re:model.layers.\\d*$']
      ignore: ['re:.*lm_head']
    ConstantPruningModifier:
      targets: ['re:.*q_proj.weight']
      start: 1
  quant_modifiers:
    GPTQModifier: {scheme: W4A16}
"""
SAVED = """
version: null
args: null
stages:
- group: sparsity
  run_type: !!python/object/apply:llmcompressor.recipe.stage.StageRunType
  - oneshot
  args: {amount: 0.5}
  enabled: true
  modifiers:
  - type: WandaPruningModifier
    group: sparsity
    args: {sparsity: eval(amount), targets: Linear, sparsity_profile: owl, owl_m: 7, owl_lmbda: 0.1, index: null}
metadata: null
"""


def test_stages_of_llm_compressor():
    found = recipe.read(STAGES)
    made = found.recipe.prune
    assert found.report.dialect == "llm-compressor" and made.event.type == "started"
    assert (made.handler.pattern.keep, made.handler.pattern.of) == (3, 4)
    assert made.handler.saliency.block == 64 and made.handler.repair.damping == 0.05
    assert made.handler.params.modules == (r"re:model.layers.\d*$",)
    assert outcomes(found)["GPTQModifier"][0] == "handed on"
    found = recipe.read(SAVED)
    assert found.recipe.prune.handler.allocation.threshold == 7 and found.recipe.prune.handler.schedule.sparsity == 0.5
    (skipped,) = found.report.skipped
    assert "StageRunType" in skipped.what and skipped.line == 6


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.ModuleDict({"q_proj": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}) for _ in range(2)]
        self.model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.lm_head = nn.Linear(8, 8)

    def forward(self, x):
        for layer in self.model["layers"]:
            x = layer["norm"](layer["q_proj"](x))
        return self.lm_head(x)


def test_a_one_shot_stage_prunes_when_the_run_starts():
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    data = [(torch.randn(4, 8), torch.randn(4, 8)) for _ in range(2)]
    attached = recipe.read(STAGES.replace("0.5\n", "0.25\n")).attach(
        trainer, model=model, optimizer=optimizer, data=data
    )
    trainer.run(data, max_epochs=1)
    assert sorted(attached.pruner.masks) == ["model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight"]
    assert attached.pruner.sparsity == 0.25


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            "!ACDCPruningModifier {compression_sparsity: 0.9, end_epoch: 9, update_frequency: 2}",
            "Alternat",
        ),
        ("!RigLPruningModifier {final_sparsity: 0.7, end_epoch: 9, update_frequency: 0.5, num_grads: 100}", "RigL"),
        ("!TopKASTPruningModifier {forward_sparsity: 0.9, backward_sparsity: 0.5, update_frequency: -1}", "TopKAST"),
        ("!MovementPruningModifier {final_sparsity: 0.9, end_epoch: 9, update_frequency: 0.01}", "Movement"),
        ("!OBSPruningModifier {final_sparsity: 0.9, end_epoch: 9, fisher_block_size: 8, damp: 1e-7}", "OBS"),
        ("!MFACPruningModifier {final_sparsity: 0.9, end_epoch: 9, num_grads: {0.0: 64}}", "OBS"),
        ("!StructuredPruningModifier {final_sparsity: 0.5, end_epoch: 9, mask_type: channel}", "Channel"),
        ("!StructuredPruningModifier {final_sparsity: 0.5, end_epoch: 9, param_groups: [[a, b]]}", "Coupled"),
        (
            "!GlobalMagnitudePruningModifier {final_sparsity: 1, end_epoch: 9, init_sparsity: __FROM_PARAM__}",
            "Global",
        ),
        ("!ConstantPruningModifier {start_epoch: 0, params: __ALL__}", "nonzero"),
        ("!GMPruningModifier {final_sparsity: 0.5, end_epoch: 9, score_type: movement}", "Movement"),
    ],
)
def test_every_pruning_modifier_of_sparseml(entry, says):
    found = recipe.read(f"pruning_modifiers:\n  - {entry}\n")
    assert len(found.report.translated) == 1 and says in found.dump()
    assert recipe.load(found.dump()).dump() == found.dump()


def test_the_narrower_of_two_overlapping_modifiers_wins():
    found = recipe.read(
        "modifiers:\n"
        "  - !GMPruningModifier {final_sparsity: 0.5, start_epoch: 0, end_epoch: 2, params: __ALL_PRUNABLE__}\n"
        "  - !GMPruningModifier {final_sparsity: 0.8, start_epoch: 0, end_epoch: 2, params: ['re:0.*']}\n"
    )
    assert [(item.line, "those of line 3 are left out" in item.why) for item in found.report.not_possible] == [
        (2, True)
    ]
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(lambda engine, batch: None)
    attached = found.recipe.attach(engine, model=model, optimizer=optimizer, steps_per_epoch=4)
    assert [group["params"] for group in attached.pruner.param_groups] == [["1.weight"], ["0.weight", "0.bias"]]


def test_what_does_not_prune_has_a_report_and_no_recipe():
    found = recipe.read("modifiers:\n  - !QuantizationModifier {start_epoch: 0}\n")
    assert found.recipe is None and len(found.report.handed_on) == 1
    with pytest.raises(recipe.RecipeError, match="nothing in it prunes"):
        found.dump()


WEIGHT_COMPRESSION_PYTORCH = """
pruning:
  approach:
    weight_compression_pytorch:
      start_step: 10
      end_step: 100
      excluded_names: ["classifier"]
      prune_layer_type: ["Linear"]
      target_sparsity: 0.9
      max_layer_sparsity_ratio: 0.95
      update_frequency_on_step: 5
      resume_from_pruned_checkpoint: true
      pruners:
        - !Pruner
            {pattern: 2in4, prune_type: snip, prune_domain: local, extra_excluded_names: [head], target_sparsity: 0.5}
        - !Pruner {pattern: 1xchannel, names: ["layer1.*"], sparsity_decay_type: cube, unheard: 1}
"""


def test_weight_compression_pytorch():
    found = recipe.read(WEIGHT_COMPRESSION_PYTORCH)
    first, second = found.recipe.prune.handler.params
    assert first["params"].ignore == ("re:classifier", "re:head") and first["params"].modules == ("Linear",)
    assert (first["pattern"].keep, first["schedule"].every, first["schedule"].horizon) == (2, 5, 100)
    assert second["allocation"].max_sparsity == 0.95 and second["pattern"].dim == 0
    assert {item.what for item in found.report.not_possible} == {"unheard"}
    assert recipe.load(found.dump()).dump() == found.dump()


def test_dicts_of_neural_compressor():
    configs = [
        {"op_names": ["5"], "pruning_type": "magnitude", "pattern": "channelx1", "target_sparsity": 0.5, "end_step": 4},
        {"op_names": ["7"], "pruning_type": "snip_momentum", "pattern": "1:4", "pruning_scope": "local"},
    ]
    for given in (configs, {"pruning_configs": configs, "start_step": 0}, configs[0]):
        found = recipe.read(given)
        assert recipe.load(found.dump()).dump() == found.dump()
    second = recipe.read(configs).recipe.prune.handler.params[1]
    assert (second["pattern"].keep, second["params"].modules) == (3, ("re:.*(?:7)",))


GROUP_LASSO = """
version: 1.0
model: {name: x, framework: pytorch}
pruning:
  train:
    epoch: 40
    optimizer: {Adam: {learning_rate: 1e-06}}
    criterion: {KnowledgeDistillationLoss: {temperature: 1.0}}
  approach:
    weight_compression:
      initial_sparsity: 0.0
      target_sparsity: 0.97
      start_epoch: 0
      end_epoch: 40
      pruners:
        - !Pruner
            prune_type: group_lasso
            names: ['layer.*.weight']
            parameters: {alpha: 0.006, pattern: tile_pattern_4x1}
            update_frequency: 0.5
        - !Pruner {prune_type: pattern_lock, names: [fc.weight]}
        - !Pruner {prune_type: gradient_sensitivity, names: [head.weight], method: per_tensor}
tuning: {accuracy_criterion: {relative: 0.1}}
"""


def test_epochs_of_neural_compressor():
    found = recipe.read(GROUP_LASSO)
    lasso, lock, taylor = found.recipe.prune.handler.params
    assert lasso["pattern"].shape == (4, 1) and lasso["params"].regex == r"layer\.\d+\.weight$"
    assert found.recipe.prune.masks == "nonzero" and lock["schedule"](5) == 0
    assert type(taylor["saliency"]).__name__ == "Taylor"
    (handler,) = found.recipe.handlers
    assert handler.handler.strength == 0.006 and handler.handler.proximal is False
    assert found.recipe.epochs == 40 and {each.what for each in found.report.handed_on} == {
        "train.optimizer", "train.criterion",
    }  # fmt: skip
    assert recipe.load(found.dump()).dump() == found.dump()


def test_constant_sparsity_of_tfmot_within_a_layer():
    config = {"target_sparsity": 0.5, "begin_step": 4, "end_step": 20, "frequency": 3}
    given = {"config": {"pruning_schedule": {"class_name": "ConstantSparsity", "config": config}}}
    found = recipe.read(given).recipe.prune.handler.schedule
    assert [found(step) for step in (0, 3, 4, 30)] == [0, 0, 0.5, 0.5]


def test_masked_state_dicts_of_torch(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    for layer in (model[0], model[2]):
        torch_prune.l1_unstructured(layer, "weight", 0.5)
    expected = {"0.weight": model[0].weight.detach(), "2.weight": model[2].weight.detach()}
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    for given in (model.state_dict(), tmp_path / "last.ckpt"):
        found = recipe.read(given)
        plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        plain.load_state_dict(found.state_dict)
        for name, weight in expected.items():
            assert torch.equal(plain.state_dict()[name], weight) and torch.equal(found.masks[name], weight != 0)
    trainer = create_supervised_trainer(plain, torch.optim.SGD(plain.parameters(), lr=0.1), nn.functional.mse_loss)
    attached = found.attach(trainer, model=plain)
    assert all(torch.equal(attached.pruner.masks[name], mask) for name, mask in found.masks.items())
    attached.detach()
    with pytest.raises(recipe.RecipeError, match="nothing in it is pruned"):
        recipe.read(plain.state_dict())
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(recipe.RecipeError, match="cannot be read"):
        recipe.read(tmp_path / "whole.pt")


NEW = """
test_stage:
  run_type: train
  pruning_modifiers:
    MagnitudePruningModifier:
      init_sparsity: 0.0
      final_sparsity: 0.5
      start: eval(warm_up_epochs)
      end: eval(warm_up_epochs + 2)
      update_frequency: 0.5
      update_scheduler: linear
      apply_globally: true
      targets: [model.layers.0.q_proj.weight, lm_head]
  quant_modifiers:
    QuantizationModifier: {start: eval(elsewhere)}
"""


def test_variables_are_given_and_targets_name_weights():
    with pytest.raises(recipe.RecipeError, match="there is no variable 'warm_up_epochs'") as caught:
        recipe.read(NEW)
    assert caught.value.line == 8
    found = recipe.read(NEW, variables={"warm_up_epochs": 1})
    made = found.recipe.prune.handler
    assert made.schedule(1.5) == 0.125 and type(made.allocation).__name__ == "Global"
    assert made.params.names(Language()) == ["model.layers.0.q_proj.weight", "lm_head.weight"]
    assert len(found.report.handed_on) == 1
    with pytest.raises(ValueError, match="a file of neural_compressor has none"):
        recipe.read("target_sparsity: 0.5\nend_step: 4\n", variables={"a": 1})


EXCERPT = "- !GMPruningModifier\n  final_sparsity: 0.5\n  end_epoch: 4\n"


@pytest.mark.parametrize(
    "text", [EXCERPT, EXCERPT.replace("- ", "", 1), EXCERPT.replace("- !", "!").replace("\n  ", "\n    ")]
)
def test_excerpts_are_read(text):
    assert recipe.read(text).recipe.prune.handler.schedule.horizon == 4


@pytest.mark.parametrize(("start", "end", "phase"), [(0, 10, 2), (1, 12, 3), (0, 4, 2), (2, 9, 1)])
def test_phases_of_acdc_are_those_of_sparseml(start, end, phase):
    model = Language()
    text = f"""
    modifiers:
      - !ACDCPruningModifier
        {{compression_sparsity: 0.5, start_epoch: {start}, end_epoch: {end}, update_frequency: {phase}}}
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    attached, found = recipe.read(text).attach(trainer, model=model, optimizer=optimizer), []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: found.append(attached["alternating_sparse"].sparsity))
    trainer.run([(torch.randn(2, 8), torch.randn(2, 8))], max_epochs=end)
    rule = [0.0 if e < start or ((e - start) // phase % 2 == 0 and e < end - phase) else 0.5 for e in range(end)]
    assert found == rule
