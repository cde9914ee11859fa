"""The training loop against a bare one, and every promise of a recipe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from logitkit import InputError, data, load
from logitkit.data.base import seeded
from logitkit.engine import Diverged, Prepared, Recipe, Trainer, run
from logitkit.engine.inference import forward


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load("digits+limit=500"), 0))


def make(**settings):
    return Recipe.of(**{"epochs": 3, "model": "mlp(hidden=(16,))", **settings})


@pytest.mark.parametrize(("batch_size", "epochs"), [(64, 3), (1, 1)])
def test_it_is_the_bare_loop(prepared, batch_size, epochs):
    """Same weights, bit for bit, as twenty lines of PyTorch."""
    recipe = make(schedule="constant", weight_decay=0.01, seed=3, batch_size=batch_size, epochs=epochs)
    torch.set_num_threads(1)
    trained = Trainer(recipe, prepared).run()

    torch.manual_seed(3)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
    head = nn.Linear(16, 10)
    twin = nn.Sequential(body, head)
    start = Trainer(recipe, prepared).network
    twin.load_state_dict(dict(zip(twin.state_dict(), start.state_dict().values(), strict=True)))
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    x, y = prepared.train
    for epoch in range(epochs):
        order = torch.randperm(len(y), generator=seeded("order", 3, epoch))
        for rows in order.split(batch_size):
            loss = nn.functional.cross_entropy(twin(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for ours, theirs in zip(trained.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_batch_order_differs_between_seeds_and_between_epochs(prepared):
    orders = {
        tuple(Trainer(make(seed=seed), prepared)._order(epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "aldr", "optimizer": "adam"},
        {"loss": "ensloss", "model": "cnn"},
        {"optimizer": "perp_grad", "softmax": "stablemax", "clip": 1.0, "warmup": 0.2},
        {"model": "mlp(hidden=(16,), dropout=0.3)", "patience": 2, "regularize": "0.1*focal"},
    ],
    ids=str,
)
def test_resuming_from_a_checkpoint_changes_nothing(prepared, tmp_path, settings):
    """Stop at an arbitrary step, start a new process's worth of objects, go on: same bits."""
    recipe = make(epochs=4, **settings)
    whole = Trainer(recipe, prepared)
    whole.run()

    class Stop(Exception):
        pass

    path = tmp_path / "c.safetensors"
    first = Trainer(recipe, prepared, checkpoint=path, checkpoint_every=3)
    step, first.count = first.algorithm.step, 0

    def stopping(trainer, batch):
        first.count += 1
        if first.count == 11:  # two steps after a checkpoint, in the middle of an epoch
            raise Stop
        return step(trainer, batch)

    first.algorithm.step = stopping
    with pytest.raises(Stop):
        first.run()
    torch.manual_seed(12345)  # whatever happened meanwhile
    second = Trainer(recipe, prepared, checkpoint=path, checkpoint_every=3)
    second.run()
    assert second.progress.step == whole.progress.step
    for a, b in zip(whole.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    drop = {"seconds"}
    assert [
        {k: v for k, v in p.items() if k not in drop} for p in whole.progress.curve
    ] == second.progress.curve


def test_early_stopping_keeps_the_best_weights(prepared):
    trainer = Trainer(make(epochs=60, lr=0.03, patience=2), prepared)
    network = trainer.run()
    scores = [(p["val_accuracy"], -p["val_nll"]) for p in trainer.progress.curve]
    assert len(scores) < 60
    assert max(scores) == scores[-3]
    outputs = forward(network, prepared.val[0])
    accuracy = (outputs.argmax(1) == prepared.val[1]).double().mean().item()
    nll = nn.functional.cross_entropy(outputs.double(), prepared.val[1]).item()
    assert (accuracy, -nll) == max(scores)


def test_schedules_end_where_they_should(prepared):
    for schedule, last in (("cosine", 0.0), ("linear", 0.0), ("constant", 1e-3)):
        trainer = Trainer(make(schedule=schedule, warmup=0.1), prepared)
        rates = []
        step = trainer.algorithm.step
        trainer.algorithm.step = lambda t, b, rates=rates, step=step: (
            rates.append(t.optimizer.param_groups[0]["lr"]),
            step(t, b),
        )[1]
        trainer.run()
        assert rates[0] < 1e-3
        assert max(rates) == pytest.approx(1e-3)
        assert rates[-1] == pytest.approx(last, abs=2e-4)


def test_clipping_bounds_the_update(prepared):
    """With plain gradient descent a step is lr * gradient, so the norm of the first update shows the clip."""
    recipe = make(optimizer="sgd", lr=1.0, weight_decay=0.0, schedule="constant", clip=0.01, steps=1)
    trainer = Trainer(recipe, prepared)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.run()
    moved = math.sqrt(
        sum((a - b).square().sum().item() for a, b in zip(before, trainer.network.parameters(), strict=True))
    )
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_budgets(prepared):
    assert Trainer(make(steps=7), prepared).run() is not None
    trainer = Trainer(make(steps=7), prepared)
    trainer.run()
    assert trainer.progress.step == 7
    timed = Trainer(make(seconds=0.3), prepared)
    timed.run()
    assert 0.28 <= timed.progress.seconds < 1.5  # counted up to the end of the last step


def test_bf16_runs_and_learns(prepared):
    result = run(make(precision="bf16", epochs=10, lr=0.01), prepared)
    assert result.metrics["accuracy"] > 0.8
    again = run(make(precision="no", epochs=2), prepared)  # one process, two precisions
    assert again.status == "done"


def test_regulariser_adds_its_weighted_value(prepared):
    """0.5 * ce on top of ce trains exactly as 1.5 * ce: same direction, larger step for plain descent."""
    common = {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "steps": 1}
    a = Trainer(make(regularize="0.5*ce", lr=0.1, **common), prepared).run()
    b = Trainer(make(lr=0.15, **common), prepared).run()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


class Signed:
    """An algorithm of the user's own: sign descent."""

    def step(self, trainer, batch):
        loss = trainer.objective(trainer.network, batch)
        trainer.optimizer.zero_grad()
        trainer.backward(loss)
        for p in trainer.network.parameters():
            p.grad.sign_()
        trainer.optimizer.step()
        return loss.detach()


def test_an_algorithm_owns_the_step(prepared):
    recipe = make(algorithm=Signed, optimizer="sgd", lr=1e-3, weight_decay=0.0, schedule="constant", steps=1)
    trainer = Trainer(recipe, prepared)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.run()
    for old, new in zip(before, trainer.network.parameters(), strict=True):
        moved = (old - new).abs()
        assert ((moved < 1e-9) | ((moved - 1e-3).abs() < 1e-6)).all()


def test_divergence_is_a_status_not_a_crash(prepared):
    with pytest.raises(Diverged, match="step"):
        Trainer(make(optimizer="sgd", lr=1e30, schedule="constant"), prepared).run()
    result = run(make(optimizer="sgd", lr=1e30, schedule="constant"), prepared)
    assert result.status.startswith("diverged")
    assert result.metrics == {}


def test_a_run_leaves_the_process_as_it_was(prepared):
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(make(epochs=1), prepared)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("head", ["linear", "histogram(target='hl_gauss')", "histogram(target='two_hot')"])
def test_regression(head):
    prepared = Prepared.of(data.split(data.load("diabetes"), 0))
    result = run(Recipe.of(data="diabetes", head=head, model="mlp(hidden=(32,))", epochs=60), prepared)
    assert result.metrics["r2"] > 0.25
    predictor = result.predictor
    error = predictor.values(prepared.test[0]) - prepared.preprocessor.inverse_target(prepared.test[1])
    assert result.metrics["rmse"] == pytest.approx(error.double().square().mean().sqrt().item())


def test_calibration_improves_likelihood_and_keeps_decisions(prepared):
    recipe = make(epochs=60, lr=0.01)
    plain, calibrated = (
        run(recipe, prepared),
        run(recipe.model_copy(update={"calibrate": Recipe.of(calibrate="temperature").calibrate}), prepared),
    )
    assert calibrated.metrics["accuracy"] == plain.metrics["accuracy"]
    p = plain.predictor.probabilities(prepared.val[0]).gather(1, prepared.val[1][:, None]).log().mean()
    q = calibrated.predictor.probabilities(prepared.val[0]).gather(1, prepared.val[1][:, None]).log().mean()
    assert q >= p


def test_every_combination_of_rooms_runs(prepared):
    """Any loss with any head with any normaliser; one step each."""
    losses = [
        "ce",
        "focal",
        "comp_sum(tau=1.7)",
        "ldr",
        "aldr",
        "z_loss",
        "bias_loss",
        "ensloss",
        "dco",
        "adv_comp_sum",
    ]
    heads = ["linear", "cosine", "normalized_softmax", "ebv"]
    for loss in losses:
        for head in heads:
            for softmax in ("softmax", "stablemax"):
                result = run(make(steps=1, loss=loss, head=head, softmax=softmax), prepared, judge=False)
                assert result.status == "done", (loss, head, softmax, result.status)


@pytest.mark.parametrize("model", ["linear", "mlp", "cnn", "vit"])
@pytest.mark.parametrize("detect", ["msp", "mahalanobis"])
def test_every_model_with_every_detector(prepared, model, detect):
    result = run(make(model=model, detect=detect, epochs=1), prepared)
    assert 0.0 <= result.metrics["ood_auroc"] <= 1.0


class Tiny(nn.Module):
    """A model of the user's own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh())

    def forward(self, x):
        return self.body(x)


def test_the_users_own_model_and_loss(prepared):
    result = run(Recipe.of(model=Tiny, epochs=1), prepared)
    assert result.costs["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert run(Recipe.of(loss=nn.CrossEntropyLoss, epochs=1), prepared).status == "done"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "is for regression; the data is a classification task"),
        ({"head": "histogram"}, "cannot do classification"),
        ({"precision": "fp16"}, "needs a CUDA device"),
        ({"optimizer": "adam(momentum=1)"}, "has no argument 'momentum'"),
        ({"model": "nowhere:Net"}, "cannot import 'nowhere'"),
        ({"model": "math:pi"}, "expected a torch.nn.Module"),
        ({"algorithm": "perp_grad"}, "It is an optimiser: write optimizer=perp_grad"),
    ],
)
def test_what_cannot_work_is_said_before_training(prepared, settings, message):
    with pytest.raises(InputError, match=message):
        run(make(**settings), prepared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 is not valid"),
        ({"epoch": 3}, "no setting 'epoch'. Did you mean 'epochs'"),
        ({"loss": "cross_entrop"}, "Did you mean 'cross_entropy'"),
        ({"loss": "linear"}, "write model=linear|write head=linear"),
        ({"loss": "ldr(lamb=1)"}, "no argument 'lamb'. Did you mean 'lam'"),
        ({"loss": "ldr(lam"}, "cannot read the part"),
        ({"head": "os:path"}, "your own code can be"),
        ({"model": nn.Linear(2, 2)}, "give the class Linear or a function that builds one, not an instance"),
        ({"model": lambda: nn.Linear(2, 2)}, "define it at the top level of a module"),
        ({"schedule": "cosin"}, "schedule='cosin' is not valid"),
    ],
)
def test_recipe_mistakes(settings, message):
    with pytest.raises(InputError, match=message):
        Recipe.of(**settings)


def test_recipe_is_a_value():
    a = Recipe.of(loss="ce", regularize="0.1*z_loss(a=0.5) + focal")
    b = Recipe.of(**a.model_dump(mode="json"))
    assert a == b
    assert a.hash == b.hash == Recipe.of(loss="cross_entropy", regularize=["0.1*z_loss(a=0.5)", "focal"]).hash
    assert a.hash != Recipe.of(loss="ce").hash
    assert hash(a) == hash(b)


def test_predictor_round_trip_is_exact(prepared, tmp_path):
    settings = {"calibrate": "temperature", "detect": "mahalanobis", "head": "cosine", "softmax": "stablemax"}
    result = run(make(**settings), prepared)
    result.predictor.save(tmp_path)
    again = load(tmp_path)
    x, y = prepared.test
    found, _ = again.evaluate(x, y, train=prepared.train)
    assert found == result.metrics == again.metrics
