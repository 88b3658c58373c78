"""Bad recipes: a clear error with the line, quickly, and nothing attached."""

import time

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn

from ignite_prune import recipe
from tests.models import small_net

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcdefgh", "bcdefghi")
)
MODIFIER = "modifiers:\n  - !GMPruningModifier\n    final_sparsity: 0.8\n    end_epoch: 4\n"
BAD = {  # name: (text, line or None, what the error says)
    "unknown field": ("prune:\n  shedule: linear\n", 2, "unknown field; near matches: 'schedule'"),
    "unknown piece": ("saliency: tailor\nparams: x\n", 1, "near matches: 'Taylor'"),
    "misspelt argument": ("schedule:\n  type: Linear\n  final: 0.5\n  begin: 0\n  edn: 3\n", 5, "near matches: 'end'"),
    "percent": ("schedule:\n  type: Linear\n  final: 50\n  begin: 0\n  end: 3\n", 3, "for 50 % write 0.5"),
    "missing": ("schedule:\n  type: Linear\n  final: 0.5\n  begin: 0\n", 1, "schedule.end: is missing"),
    "text for a number": (
        "schedule: {one_shot: {sparsity: '0.5', at: 2}}\n",
        1,
        "should be a whole number or a number",
    ),
    "twice": ("schedule: {one_shot: {sparsity: 0.5, at: 2}}\nsaliency: snip\nsaliency: taylor\n", 3, "lines 2 and 3"),
    "tag": ("schedule: !!python/object/apply:os.system [ls]\n", 1, "a recipe has no tags"),
    "not YAML": ("schedule: {a: 1\nsaliency: x\n", 2, "not YAML"),
    "nothing": ("version: 1\n", None, "it would do nothing"),
    "empty": ("\n\n", None, "should be a mapping"),
    "list": ("- a: 1\n- b: 2\n", None, "should be a mapping"),
    "no event": ("prune:\n  event: epoch_complete\n", 2, "near matches: 'epoch_completed'"),
    "fraction of an epoch": ("prune:\n  event: {type: epoch_completed, every: 0.5}\n", 2, "counts whole epochs"),
    "bomb": (BOMB, None, "values"),
    "deep": ("x: " + "[" * 5000 + "]" * 5000 + "\n", 1, "nested deeper"),
    "long": ("x: [" + "1, " * 30_000 + "1]\n", 1, "more than 20000 values"),
    "cycle": ("x: &x [*x]\ny: 1\n", None, "no end"),
    "layer": (
        "params: {layer: Conv4d}\nschedule: {one_shot: {sparsity: 0.5, at: 2}}\n",
        1,
        "near matches: 'Conv3d', 'Conv2d'",
    ),
    "function": ("saliency: os:system\nparams: x\n", 1, "functions of your own modules"),
}
FOREIGN = {
    "import": ("x: eval(__import__('os'))\n" + MODIFIER + "    start_epoch: eval(x)\n", 6, "nothing is evaluated"),
    "attribute": (MODIFIER + "    start_epoch: eval((1).__class__)\n", 5, "nothing is evaluated"),
    "power": (MODIFIER + "    start_epoch: eval(9**9**9)\n", 5, "BinOp is none"),
    "large": ("a: eval(999999999 * 999999999)\n" + MODIFIER + "    start_epoch: eval(a)\n", 6, r"above 1e\+15"),
    "zero": ("a: 0\nb: eval(1 / a)\n" + MODIFIER + "    start_epoch: eval(b)\n", 7, "divides by zero"),
    "cyclic": ("a: eval(b)\nb: eval(a + 1)\n" + MODIFIER + "    start_epoch: eval(a)\n", 7, "defined by each other"),
    "unknown variable": ("epochs: 3\n" + MODIFIER + "    start_epoch: eval(epoch)\n", 6, "near matches: 'epochs'"),
    "parentheses": (MODIFIER + f"    start_epoch: eval({'(' * 400}1{')' * 400})\n", 5, "characters|not arithmetic"),
    "both": (MODIFIER.replace("0.8", "{0.5: [a]}") + "    params: [b]\n", 5, "params should be empty"),
    "no number": (MODIFIER + "    start_epoch: soon\n", 5, "start_epoch should be a number"),
    "mask": (MODIFIER + "    mask_type: 4:4\n", 5, "mask_type should be"),
    "minutes": (MODIFIER + "    init_sparsity: 1:2\n", 5, "init_sparsity should be a number"),
    "regex": (MODIFIER + "    params: ['re:((a+)+)+$']\n", 2, "may take for ever"),
    "not a regex": (MODIFIER + "    params: ['re:[']\n", 2, "not a regular expression"),
    "backwards": (MODIFIER + "    start_epoch: 5\n", 4, "is before start_epoch"),
    "unknown": ("just: text\n", 1, "looks like no recipe that is known"),
    "no pruners": ("pruning:\n  approach:\n    weight_compression: {start_epoch: 0}\n", 3, "should have pruners"),
    "pattern": ("target_sparsity: 0.5\npattern: 4by1\n", 2, "pattern should be NxM"),
    "decay": ("target_sparsity: 0.5\nsparsity_decay_type: expo\nend_step: 4\n", 2, "near matches: 'exp'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_is_refused_with_its_line(name):
    text, line, says = BAD[name]
    start = time.process_time()
    with pytest.raises(recipe.RecipeError, match=says) as caught:
        recipe.load(text)
    assert time.process_time() - start < 1
    assert line is None or caught.value.line == line


@pytest.mark.parametrize("name", FOREIGN)
def test_a_bad_recipe_of_another_tool_is_refused_with_its_line(name):
    text, line, says = FOREIGN[name]
    start = time.process_time()
    with pytest.raises(recipe.RecipeError, match=says) as caught:
        recipe.read(text)
    assert time.process_time() - start < 1
    assert caught.value.line == line


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text("x: 1\n" * 2_000_000)
    for read in (recipe.load, recipe.read):
        with pytest.raises(recipe.RecipeError, match=r"large.yaml: the file has 9.5 MiB"):
            read(path)
    with pytest.raises(recipe.RecipeError, match="there is no such file"):
        recipe.load(tmp_path / "none.yaml")
    (tmp_path / "bits.yaml").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(recipe.RecipeError, match="not text in UTF-8"):
        recipe.load(tmp_path / "bits.yaml")
    with pytest.raises(TypeError, match="a path, text or a mapping"):
        recipe.load(3)


SHOT = "  schedule: {one_shot: {sparsity: 0.5, at: 2}}\n"
UNFIT = {  # (text, line, what the error says, attach's options)
    "no such layer": ("prune:\n" + SHOT + "  params: 6.weight\n", 3, "near matches: '7.weight', '5.weight'", {}),
    "no such module": ("prune:\n" + SHOT + "  params: {modules: [Embedding]}\n", 3, "no parameter matches", {}),
    "beyond the run": ("epochs: 1\nprune:\n" + SHOT, 2, "the run has 1 epochs", {}),
    "beyond max_epochs": ("prune:\n" + SHOT, 1, "the run has 1 epochs", {"max_epochs": 1}),
    "overlap": (
        "prune:\n  params:\n    - params: '*.weight'\n    - params: 5.weight\n" + SHOT,
        4, "appears in group 0 and again in group 1", {},
    ),
    "overlapping handlers": (
        "prune:\n" + SHOT + "handlers:\n  - {type: RigL, sparsity: 0.5, end: 9}\n",
        1, "masked by another handler, RigL", {},
    ),
    "does not fit": ("prune:\n" + SHOT + "  pattern: {type: NofM, keep: 2, of: 7}\n", 1, "divisible", {}),
    "no example": ("prune:\n" + SHOT + "  structure: trace\n", 3, "example_inputs", {}),
    "no length": ("prune:\n" + SHOT + "  event: {type: iteration_completed, unit: epochs}\n", 3, "loader=", {}),
    "rounds without data": ("prune:\n" + SHOT + "rounds: {rounds: 2, epochs: 1}\n", 1, "need attach", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_attaches_nothing(name):
    text, line, says, options = UNFIT[name]
    model = small_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    handlers = {event: len(each) for event, each in trainer._event_handlers.items()}
    with pytest.raises(recipe.RecipeError, match=says) as caught:
        recipe.load(text).attach(trainer, model=model, optimizer=optimizer, **options)
    assert caught.value.line == line
    assert {event: len(each) for event, each in trainer._event_handlers.items() if each} == {
        event: count for event, count in handlers.items() if count
    }
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    recipe.load("prune:\n" + SHOT).attach(trainer, model=model, optimizer=optimizer)
