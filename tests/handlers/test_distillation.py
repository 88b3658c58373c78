"""Distillation: one teacher's pass a batch, in every kind of step; sliced students; what is refused."""

import copy

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import PiecewiseLinear
from ignite.metrics import Loss
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from ignite_prune import PruneHandler, ShrinkHandler, allocation, regularise, schedule, trace
from ignite_prune.handlers import AttentionMSE, Distillation, HiddenMSE, LogitsMSE, SoftTargets
from tests.models import Attention, assert_same_bits, attention_net, batches, small_net

BOTH = [SoftTargets(3.0), HiddenMSE("5", project=True)]


def wide_net():
    net = small_net(5)
    return nn.Sequential(*net[:5], nn.Linear(128, 24), nn.Tanh(), nn.Linear(24, 4))


def parts(teacher=None, lr=0.05, **options):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    options = {"losses": BOTH, "generator": torch.Generator().manual_seed(1), **options}
    distillation = Distillation(wide_net() if teacher is None else teacher, model, optimizer=optimizer, **options)
    return model, optimizer, distillation


def trainer_of(model, optimizer, distillation, **options):
    trainer = create_supervised_trainer(model, optimizer, distillation.wrap(cross_entropy), **options)
    distillation.attach(trainer, Events.ITERATION_COMPLETED)
    return trainer


def test_the_loss_is_the_mixture_and_the_teacher_runs_once_in_eval_mode_without_gradients():
    model, optimizer, distillation = parts(hardness=0.25)
    teacher, seen = distillation.teacher.train(), []
    teacher.register_forward_hook(lambda m, a, y: seen.append((m.training, m[1].training, y.requires_grad)))
    trainer = trainer_of(model, optimizer, distillation)
    before = copy.deepcopy((model.state_dict(), teacher.state_dict()))
    matrix = next(distillation.parameters()).detach().clone()
    (x, y), *_ = data = batches(1)
    trainer.run(data, max_epochs=1)
    assert seen == [(False, False, False)] and all(p.grad is None for p in teacher.parameters())
    assert_same_bits(teacher.state_dict(), before[1])
    plain = small_net()
    plain.load_state_dict(before[0])
    hidden, logits = plain[:6](x), None
    logits = plain[6:](hidden)
    with torch.no_grad():
        wanted = teacher.eval()[:6](x)
    terms = regularise.soft_targets(logits, teacher(x), 3.0) + mse_loss(hidden @ matrix.T, wanted)
    total = 0.75 * cross_entropy(logits, y) + 0.25 * terms
    published = trainer.state.distillation
    assert published["loss"] == pytest.approx(total.item(), rel=1e-6) == trainer.state.metrics["distillation"]
    total.backward()
    for one, two in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, two.grad)
    distillation.detach()
    assert teacher.training is False or teacher[1].training  # as it was found
    assert not torch.equal(next(distillation.parameters()), matrix), "the projection is trained"


def test_accumulated_gradients_are_those_of_the_whole_batch():
    ends = []
    for accumulate in (1, 2):
        model, optimizer, distillation = parts(lr=0.0)
        model.eval()  # the step itself sets training mode, whose statistics differ between halves
        frozen = nn.Sequential(model[0], nn.Identity(), *model[2:])
        optimizer = torch.optim.SGD(frozen.parameters(), lr=0.0)
        distillation = Distillation(wide_net(), frozen, losses=SoftTargets(3.0), hardness=0.5)
        trainer = trainer_of(frozen, optimizer, distillation, gradient_accumulation_steps=accumulate)
        (x, y) = batches(1)[0]
        trainer.run([(x, y)] if accumulate == 1 else [(x[:3], y[:3]), (x[3:], y[3:])], max_epochs=1)
        ends.append([p.grad.clone() for p in frozen.parameters()])
    for one, two in zip(*ends):
        torch.testing.assert_close(one, two)


def test_amp_computes_the_losses_in_float32():
    model, optimizer, distillation = parts()
    loss_fn = distillation.wrap(cross_entropy)

    def step(engine, batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_fn(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    trainer = Engine(step)
    distillation.attach(trainer)
    trainer.run(batches(3), max_epochs=2)
    assert trainer.state.output.dtype == torch.float32 and trainer.state.distillation["hidden.5"] > 0


class OwnLoss(nn.Module):
    """As the models of transformers: keywords, and an output with its own loss."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None if labels is None else cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "tuple": 0}


@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_a_step_stays_as_it_is_where_the_model_returns_its_own_loss(form):
    model = OwnLoss()
    if form == "tuple":
        model.register_forward_hook(lambda m, a, output: (output["loss"], output["logits"]))
    key = "loss" if form == "mapping" else 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hidden = HiddenMSE("net.5", "5", project=True)
    inputs = lambda args, kwargs: ((kwargs["x"],), {})  # noqa: E731
    distillation = Distillation(
        wide_net(), model, losses=[LogitsMSE(), hidden], optimizer=optimizer, own_loss=key, inputs=inputs
    )

    def step(engine, batch):
        optimizer.zero_grad()
        loss = model(x=batch[0], labels=batch[1])[key]
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(step)
    distillation.attach(trainer, Events.ITERATION_COMPLETED)
    trainer.run(batches(2), max_epochs=1)
    report = trainer.state.distillation
    assert report["loss"] == pytest.approx(trainer.state.output)
    assert report["loss"] == pytest.approx(0.5 * report["task"] + 0.5 * (report["logits"] + report["hidden.net.5"]))


def test_two_views_in_one_step_are_both_distilled():
    model, _, distillation = parts(losses=LogitsMSE(), hardness=1.0)
    distillation.install()
    (x, y), (other, _) = batches(2)
    teacher = distillation.teacher
    model.eval()
    loss = cross_entropy(model(x) + model(other), y)
    wanted = (mse_loss(model(x).detach(), teacher(x)) + mse_loss(model(other).detach(), teacher(other))) / 2
    distillation.detach()
    distillation.install()
    mixed = distillation.wrap(lambda: cross_entropy(model(x) + model(other), y))()
    assert mixed.item() == pytest.approx(wanted.item(), rel=1e-5) and loss.item() != mixed.item()


class Maps(Attention):
    def forward(self, x):
        x = x.flatten(2)
        return self.out((x + self.attention(x, x, x)[0]).mean(1))


def test_attentions():
    torch.manual_seed(0)
    model, teacher = Maps(), Maps()
    optimizer, seen = torch.optim.Adam(model.parameters(), lr=0.01), []
    distillation = Distillation(teacher, model, losses=AttentionMSE("attention"), hardness=1.0)
    trainer = trainer_of(model, optimizer, distillation)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.distillation["attention.attention"])
    )
    trainer.run(batches(1) * 20, max_epochs=1)
    assert 0 < seen[-1] < seen[0] / 4
    none = Distillation(attention_net(1), attention_net(), losses=AttentionMSE("attention"))
    net = none._root
    trainer = trainer_of(net, torch.optim.SGD(net.parameters(), lr=0.1), none)
    with pytest.raises(TypeError, match="returned no attentions; MultiheadAttention needs need_weights=True"):
        trainer.run(batches(1), max_epochs=1)


def test_itself_is_frozen_at_the_first_attach_while_the_student_is_pruned():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    distillation = Distillation("self", model, losses=[SoftTargets(), HiddenMSE("5")])
    with torch.no_grad():
        model[7].bias.fill_(2.0)  # after the handler was made, before it is attached
    dense = copy.deepcopy(model.state_dict())
    assert distillation.teacher is None
    trainer = trainer_of(model, optimizer, distillation)
    pruner = PruneHandler(model, optimizer, schedule=schedule.OneShot(0.9, at=1))
    pruner.attach(trainer)
    trainer.run(batches(2), max_epochs=3)
    assert_same_bits(distillation.teacher.state_dict(), dense)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-3) and trainer.state.distillation["hidden.5"] > 0
    distillation.detach()
    distillation.attach(trainer)
    assert_same_bits(distillation.teacher.state_dict(), dense)


def test_hardness_follows_a_schedule_or_a_param_scheduler_and_0_calls_no_teacher():
    plan = schedule.Steps({0: 0.0, 2: 0.5})
    model, optimizer, distillation = parts(losses=LogitsMSE(), hardness=plan)
    seen, calls = [], []
    distillation.teacher.register_forward_hook(lambda *_: calls.append(1))
    trainer = create_supervised_trainer(model, optimizer, distillation.wrap(cross_entropy))
    distillation.attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: seen.append((e.state.distillation["hardness"], len(calls)))
    )
    trainer.run(batches(2), max_epochs=4)
    assert seen == [(0.0, 0), (0.5, 0), (0.5, 2), (0.5, 4)]
    model, optimizer, distillation = parts(losses=LogitsMSE(), hardness=0.5)
    trainer = trainer_of(model, optimizer, distillation)
    trainer.add_event_handler(Events.ITERATION_STARTED, PiecewiseLinear(distillation, "hardness", [(0, 0.0), (4, 1.0)]))
    trainer.run(batches(4), max_epochs=1)
    assert distillation.param_groups[0]["hardness"] == trainer.state.distillation["hardness"] == 0.75


def test_an_evaluator_and_a_detached_handler_give_the_loss_of_the_task():
    model, optimizer, distillation = parts()
    loss_fn = distillation.wrap(cross_entropy)
    trainer = trainer_of(model, optimizer, distillation)
    trainer.run(batches(2), max_epochs=1)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(loss_fn)})
    found = evaluator.run(batches(1, seed=3)).metrics["loss"]
    x, y = batches(1, seed=3)[0]
    assert found == pytest.approx(cross_entropy(model.eval()(x), y).item(), rel=1e-6)
    distillation.finalize()
    assert len(optimizer.param_groups) == 1 and loss_fn(model(x), y).item() == pytest.approx(found, rel=1e-6)
    assert set(optimizer.state) <= set(model.parameters())
    trainer.run(batches(2), max_epochs=2)


def shrinking(where, project, to=0.5):
    """A run whose student loses half its channels and hidden neurons after the second epoch."""
    model, inputs = small_net(), batches(1)[0][0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    plan = schedule.Steps({1: to / 2, 3: to})
    pruner = PruneHandler(
        model, optimizer, schedule=plan, structure=trace(model, inputs), allocation=allocation.Uniform()
    )
    shrinker = ShrinkHandler(pruner, inputs)
    teacher, terms = (wide_net() if project else "self"), [HiddenMSE(where, project=project), SoftTargets()]
    distillation = Distillation(
        teacher, model, losses=terms, optimizer=optimizer, shrinker=shrinker, generator=torch.Generator().manual_seed(1)
    )
    trainer = create_supervised_trainer(model, optimizer, distillation.wrap(cross_entropy))
    distillation.attach(trainer)
    pruner.attach(trainer)
    shrinker.attach(trainer, Events.EPOCH_COMPLETED)
    objects = shrinker.to_save(
        distillation=distillation, model=model, optimizer=optimizer, pruner=pruner, trainer=trainer
    )
    return objects, distillation


@pytest.mark.parametrize(("where", "project"), [("5", True), ("5", False), ("0", False), ("1", False)])
def test_a_student_that_is_sliced_goes_on_and_resumes_to_the_bit(where, project):
    data, saved = batches(3), []
    objects, distillation = shrinking(where, project)
    trainer = objects["trainer"]

    @trainer.on(Events.EPOCH_COMPLETED(once=4))
    def save():
        saved.append(copy.deepcopy({name: each.state_dict() for name, each in objects.items()}))

    trainer.run(data, max_epochs=6)
    assert objects["model"][5].out_features == 8 and len(distillation._features.kept["0"]) in (4, 8)
    assert trainer.state.distillation[f"hidden.{where}"] > 0
    again, _ = shrinking(where, project)
    for name, each in again.items():
        each.load_state_dict(saved[0][name])
    again["trainer"].run(data, max_epochs=6)
    for name in ("model", "optimizer", "distillation", "pruner"):
        assert_same_bits(again[name].state_dict(), objects[name].state_dict())


def test_a_sliced_student_without_its_shrinker_is_refused_by_name():
    model, optimizer, distillation = parts("self", losses=HiddenMSE("5"))
    trainer = trainer_of(model, optimizer, distillation)
    trainer.run(batches(1), max_epochs=1)
    pruner = PruneHandler(model, optimizer, structure=trace(model, batches(1)[0][0]))
    pruner.step(0.5)
    ShrinkHandler(pruner, batches(1)[0][0]).shrink()
    with pytest.raises(ValueError, match=r"'5' of the student gives \(6, \d+\).*shrinker="):
        trainer.run(batches(1), max_epochs=2)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda m: Distillation("other", m), TypeError, "nn.Module or \"self\", but given 'other'"),
        (lambda m: Distillation(m, m), ValueError, "shares parameters"),
        (lambda m: Distillation(nn.Sequential(m[0], nn.Flatten()), m), ValueError, "shares parameters"),
        (lambda m: Distillation("self", m, hardness=1.5), ValueError, r"in \[0, 1\], but given 1.5"),
        (lambda m: Distillation("self", m, hardness=True), TypeError, "number"),
        (lambda m: Distillation("self", m, losses=[]), TypeError, "losses"),
        (lambda m: Distillation("self", m, losses=mse_loss), TypeError, "losses"),
        (lambda m: Distillation("self", m, losses=HiddenMSE("55")), ValueError, "no module '55'; near matches: '5'"),
        (lambda m: Distillation("self", m, losses=HiddenMSE("2", project=True)), ValueError, r"'2' does not state"),
        (lambda m: Distillation("self", m).wrap(3), TypeError, "loss_fn"),
        (lambda m: Distillation("self", m).mix(torch.zeros(())), RuntimeError, "not attached"),
        (lambda m: Distillation("self", nn.DataParallel(m)), ValueError, "DataParallel"),
        (lambda m: SoftTargets(temperature=0), ValueError, "temperature"),
        (lambda m: HiddenMSE("a", project=(3, 0)), ValueError, "project"),
        (lambda m: LogitsMSE(weight=-1), ValueError, "weight"),
        (lambda m: AttentionMSE(3), TypeError, "student"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_changed(make, error, text):
    model = small_net()
    with pytest.raises(error, match=text):
        make(model)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_loss_that_is_not_wrapped_and_a_model_that_is_not_the_students_are_told():
    model, optimizer, distillation = parts()
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    distillation.attach(trainer)
    with pytest.raises(RuntimeError, match=r"give the trainer distillation.wrap\(loss_fn\)"):
        trainer.run(batches(1), max_epochs=1)
    distillation.detach()
    trainer = trainer_of(small_net(), optimizer, distillation)
    with pytest.raises(RuntimeError, match="in its wrapper"):
        trainer.run(batches(1), max_epochs=1)
    distillation.detach()
    none = trainer_of(model, optimizer, distillation, output_transform=lambda x, y, y_pred, loss: loss)
    distillation.detach()
    distillation.install()
    with pytest.raises(TypeError, match=r"one number, but given one of shape \(6,\)"):
        distillation.wrap(nn.CrossEntropyLoss(reduction="none"))(model(batches(1)[0][0]), batches(1)[0][1])
    assert isinstance(none, Engine)


def test_teachers_of_other_classes_and_modules_are_told():
    model, optimizer, distillation = parts(nn.Sequential(nn.Flatten(), nn.Linear(256, 7)), losses=SoftTargets())
    trainer = trainer_of(model, optimizer, distillation)
    with pytest.raises(ValueError, match=r"\(6, 4\) and \(6, 7\)"):
        trainer.run(batches(1), max_epochs=1)


def test_a_copy_of_the_student_is_plain():
    model, optimizer, distillation = parts()
    trainer_of(model, optimizer, distillation)
    twin = copy.deepcopy(model)
    twin(batches(1)[0][0])
    assert not distillation._loss._calls
    model(batches(1)[0][0])
    assert len(distillation._loss._calls) == 1
