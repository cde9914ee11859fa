"""A patched causal language model trains as the model itself does, and makes no logits."""

import copy
import importlib
import pickle
import sys
from functools import partial

import pytest
import torch

pytest.importorskip("transformers")

import transformers as hf

from logitkit.adapt import FLATLoss
from logitkit.errors import MissingExtra
from logitkit.integrations.transformers import patch_loss, unpatch_loss, use_loss
from logitkit.losses import LDRKL, EISLLoss, MultitaskLoss, dco_sequence
from logitkit.ops import linear_comp_sum, linear_ldr, use

WORDS = 512
SIZES = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0,
    "eos_token_id": 1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
MODELS = {
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**SIZES)),
    "llama, tied": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt-2": (hf.GPT2LMHeadModel, lambda: hf.GPT2Config(**GPT2)),
    "gemma-2": (hf.Gemma2ForCausalLM, lambda: hf.Gemma2Config(**SIZES, final_logit_softcapping=0.2)),
    "granite": (hf.GraniteForCausalLM, lambda: hf.GraniteConfig(**SIZES, logits_scaling=0.3)),
    "cohere": (hf.CohereForCausalLM, lambda: hf.CohereConfig(**SIZES, logit_scale=0.25)),
    "phi": (hf.PhiForCausalLM, lambda: hf.PhiConfig(**{**SIZES, "num_key_value_heads": 2})),
}


def make(name="llama", seed=0):
    torch.manual_seed(seed)
    kind, config = MODELS[name]
    model = kind(config())
    with torch.no_grad():
        for parameter in model.parameters():  # biases too are not 0 then
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def draw(batch=2, time=12):
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, WORDS, (batch, time), generator=g)
    labels = tokens.clone()
    labels[0, :4] = -100
    labels[1, 7] = -100
    return {"input_ids": tokens, "labels": labels}


def run(model, **given):
    model.zero_grad()
    output = model(**given)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_models_own(name, implementation):
    model = make(name)
    expected, gradients = run(model, **draw())
    assert patch_loss(model) is model
    with use(implementation):
        output, found = run(model, **draw())
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-6)
    assert output.logits is None
    same(found, gradients)


@pytest.mark.parametrize(
    "given",
    [
        {"num_items_in_batch": 7},
        {"num_items_in_batch": torch.tensor(31)},
        {"position_ids": torch.arange(12).expand(2, 12) % 5},
        {"shift_labels": draw()["labels"].roll(1, 0)},
        {"attention_mask": (torch.arange(12) < torch.tensor([[9], [12]])).long()},
    ],
)
def test_what_the_trainer_passes_means_the_same(given):
    model = make()
    expected, gradients = run(model, **draw() | given)
    output, found = run(patch_loss(model), **draw() | given)
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-6)
    same(found, gradients)


def test_the_head_makes_no_logits_in_training_and_all_else_is_unchanged():
    model, given = make(), draw()
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    tokens = {"input_ids": given["input_ids"]}
    before = model(**tokens).logits
    labelled = model.eval()(**given)
    words = model.generate(**tokens, max_new_tokens=3, do_sample=False)
    patch_loss(model)
    calls.clear()
    assert torch.equal(model.generate(**tokens, max_new_tokens=3, do_sample=False), words)
    after = model(**given)
    assert torch.equal(after.logits, labelled.logits)
    assert after.loss == labelled.loss
    assert torch.equal(model.train()(**tokens).logits, before)
    assert calls
    calls.clear()
    assert model(**given, output_hidden_states=True).hidden_states is not None
    loss, *_ = model(**given, return_dict=False)
    assert loss.shape == ()
    assert model(given["input_ids"], labels=given["labels"]).logits is None
    patch_loss(model, evaluation=True).eval()
    assert model(**given).logits is None
    assert len(calls) == 1  # of the check
    assert unpatch_loss(model) is model
    assert type(model) is hf.LlamaForCausalLM
    assert unpatch_loss(model) is model
    assert torch.equal(model(**given).logits, labelled.logits)
    assert not [name for name in vars(model) if "logitkit" in name]


def test_checking_leaves_modes_and_random_numbers_alone():
    model = make()
    model.model.layers[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    patch_loss(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_and_pickles_stay_patched():
    model = patch_loss(make())
    expected = model(**draw()).loss
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        output = other(**draw())
        assert output.loss == expected
        assert output.logits is None
        output.loss.backward()
        assert model.lm_head.weight.grad is None
        assert type(unpatch_loss(other)) is hf.LlamaForCausalLM


def test_a_saved_model_is_the_models_own_kind(tmp_path):
    model = patch_loss(make())
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is hf.LlamaForCausalLM
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("linear", "of_logits"),
    [
        (partial(linear_comp_sum, tau=2.0), lambda z, y: 1 - z.softmax(-1).gather(1, y[:, None])[:, 0]),
        (partial(linear_ldr, lam=2.0, margin=0.5), LDRKL(lam=2.0, margin=0.5, normalize=False)),
    ],
)
def test_another_loss(linear, of_logits):
    model = make()
    y = draw()["labels"][:, 1:]
    logits = model(**draw()).logits[:, :-1][y != -100]
    expected = float(of_logits(logits, y[y != -100]).mean().detach())
    patch_loss(model, linear)
    assert float(model(**draw()).loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_compiled_and_under_autocast():
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        expected, gradients = run(model, **draw())
        output, found = run(patch_loss(model), **draw())
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-3)
    for name, gradient in gradients.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() <= 0.02 * gradient.norm()
    plain, _ = run(model, **draw())
    compiled = torch.compile(model, backend="eager")
    assert float(compiled(**draw()).loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=1e-6)


def test_the_trainer_takes_the_same_steps(tmp_path):
    tokens = draw(8, 12)["input_ids"]
    # Sequences of unequal length, so that the mean over tokens is not the mean of means.
    rows = [{"input_ids": t, "labels": t.where(torch.arange(12) < 4 + i, -100)} for i, t in enumerate(tokens)]

    def trained(model):
        options = hf.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2,
            max_steps=2, learning_rate=1e-2, optim="sgd", report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=0.0,
        )  # fmt: skip
        hf.Trainer(model, options, train_dataset=rows).train()
        return dict(model.named_parameters())

    start = dict(make().named_parameters())
    expected, found = trained(make()), trained(patch_loss(make()))
    for name, parameter in expected.items():
        step = parameter - start[name]
        assert step.abs().max() > 0
        assert (found[name] - parameter).abs().max() <= 1e-5 * step.abs().max() + 1e-7


class Doubled(hf.LlamaForCausalLM):
    """A model that does something else to its logits."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids, labels=labels, **kwargs)
        output["logits"] = 2 * output.logits
        return output


class Penalised(hf.LlamaForCausalLM):
    """A model with a loss of its own."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids, labels=labels, **kwargs)
        if labels is not None:
            output["loss"] = output.loss + 0.1
        return output


def tiny_t5():
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def routed():
    sizes = SIZES | {"num_local_experts": 2, "output_router_logits": True}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**sizes))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), {}, "expects a PreTrainedModel"),
        (lambda: make().model, {}, "linear head"),
        (tiny_t5, {}, "expects a causal language model"),
        (routed, {}, "router"),
        (lambda: Doubled(hf.LlamaConfig(**SIZES)), {}, "something to its logits"),
        (lambda: Penalised(hf.LlamaConfig(**SIZES)), {}, "is not the cross-entropy"),
        (lambda: make("gemma-2"), {"loss": linear_comp_sum}, "takes no softcap"),
    ],
)
def test_what_cannot_be_patched_is_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        patch_loss(model(), **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"logits_to_keep": 3}, "logits_to_keep cannot"), ({"output_router_logits": True}, "router")],
)
def test_what_a_patched_model_cannot_do_is_named(given, message):
    model = patch_loss(make())
    with pytest.raises(ValueError, match=message):
        model(**draw(), **given)


def test_a_class_that_was_replaced_since_is_named():
    model = patch_loss(make())
    model.__class__ = type("Sharded", (type(model),), {})
    with pytest.raises(ValueError, match="Sharded"):
        unpatch_loss(model)


TASK = torch.tensor([1, 0])


def looped(name, logits, labels):
    """Each loss from the log-probabilities of the labels, a sequence at a time."""
    log_p = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, labels[:, 1:, None].clamp(min=0))[..., 0]
    rows = [row[y != -100] for row, y in zip(log_p, labels[:, 1:], strict=True)]
    if name == "dco":
        return sum(-torch.log(-torch.expm1(4 * torch.log1p(-row.sum().exp()))) for row in rows)
    if name == "task":
        return sum(-row.mean() for row in rows) / 2
    return -torch.cat(rows).mean()


LOSSES = {
    "dco": (lambda: partial(dco_sequence, N=4), {}),
    "task": (lambda: MultitaskLoss(2), {"task_id": TASK}),
    "token": (lambda: MultitaskLoss(2, "token"), {"task_id": TASK}),
    "eisl": (lambda: EISLLoss(ngram_weight=0.0, ce_weight=1.0), {}),
}


@pytest.mark.parametrize("kind", ["llama", "gpt-2"])
@pytest.mark.parametrize("name", ["dco", "task", "token"])
def test_a_loss_of_logits_is_the_losss_own_value(kind, name):
    model = make(kind).double()
    build, extra = LOSSES[name]
    logits = model(input_ids=draw()["input_ids"]).logits
    expected = looped(name, logits, draw()["labels"])
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    assert use_loss(model, build()) is model
    output, found = run(model, **draw(), **extra)
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.equal(output.logits, logits)
    same(found, dict(zip(found, wanted, strict=True)))


@pytest.mark.parametrize("kind", ["llama", "gpt-2"])
@pytest.mark.parametrize(
    ("name", "exact"), [("dco", True), ("token", True), ("task", False), ("eisl", False)]
)
def test_parts_of_a_batch_add_up_where_the_loss_is_a_sum(kind, name, exact):
    build, extra = LOSSES[name]
    model, given = use_loss(make(kind).double(), build()), draw() | extra
    items = int((given["labels"][:, 1:] != -100).sum())
    _, whole = run(model, **given, num_items_in_batch=items)
    model.zero_grad()
    for row in (slice(0, 1), slice(1, 2)):
        part = {key: value[row] for key, value in given.items()}
        model(**part, num_items_in_batch=torch.tensor(items)).loss.backward()
    gap = max((p.grad - whole[n]).abs().max() / whole[n].abs().max() for n, p in model.named_parameters())
    assert (gap < 1e-9) == exact


def test_one_number_per_sequence_accumulates_exactly_too():
    model = use_loss(make().double().eval(), EISLLoss(reduction="none"))
    with torch.no_grad():
        values = [float(model(**{k: v[i : i + 1] for k, v in draw().items()}).loss) for i in (0, 1)]
        assert float(model(**draw()).loss) == pytest.approx(sum(values))


def test_the_loss_follows_the_mode_of_the_model():
    loss = EISLLoss()
    model = use_loss(make().eval(), loss)
    assert model(**draw()).loss == model(**draw()).loss
    assert not loss.training
    model.train()
    assert model(**draw()).loss != model(**draw()).loss  # noise


def test_flat_in_one_batch_is_the_loss_of_two():
    """Rows to forget and template rows in one forward, against two forwards and tanh(P) / 2 by hand."""
    model, batch, template = make().double().eval(), draw(5, 12), torch.tensor([0, 1, 0, 1, 1]).bool()
    p = []
    for rows in (template, ~template):
        labels = batch["labels"][rows][:, 1:]
        found = model(input_ids=batch["input_ids"][rows]).logits[:, :-1].softmax(-1)
        of_tokens = found.gather(2, labels[..., None].clamp(min=0))[..., 0]
        answers = zip(of_tokens, labels, strict=True)
        p.append(torch.stack([row[y != -100].mean() for row, y in answers]).mean())
    expected = (p[1].tanh() - p[0].tanh()) / 2
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = use_loss(model, FLATLoss("tv").of_rows)(**batch, template=template).loss
    torch.testing.assert_close(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="5 of 5 rows"):
        model(**batch, template=torch.ones(5))
    with pytest.raises(ValueError, match="needs template"):
        model(**batch)


def test_a_model_with_a_loss_copies_saves_and_gets_its_own_back(tmp_path):
    model = make()
    before, names = float(model(**draw()).loss.detach()), model.state_dict().keys()
    use_loss(model, MultitaskLoss(2, task_weights=torch.tensor([1.0, 3.0])))
    assert model.state_dict().keys() == names
    changed = float(model(**draw(), task_id=TASK).loss.detach())
    assert changed != before
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert float(other(**draw(), task_id=TASK).loss.detach()) == changed
        assert float(use_loss(other, None)(**draw()).loss.detach()) == before
    model.save_pretrained(tmp_path)
    assert float(hf.AutoModelForCausalLM.from_pretrained(tmp_path)(**draw()).loss.detach()) == pytest.approx(
        before
    )


def test_the_trainer_passes_on_what_the_loss_needs(tmp_path):
    tokens = draw(8, 12)["input_ids"]
    rows = [{"input_ids": t, "labels": t, "task_id": torch.tensor(i % 2)} for i, t in enumerate(tokens)]
    start, model = make(), use_loss(make(), MultitaskLoss(2, "token"))
    options = hf.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1,
        learning_rate=1e-2, optim="sgd", report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        lr_scheduler_type="constant", max_grad_norm=0.0, remove_unused_columns=False,
    )  # fmt: skip
    hf.Trainer(model, options, train_dataset=rows).train()
    start(input_ids=tokens, labels=tokens).loss.backward()
    for (name, parameter), (_, other) in zip(start.named_parameters(), model.named_parameters(), strict=True):
        step = -1e-2 * parameter.grad
        assert (other - parameter - step).abs().max() <= 1e-4 * step.abs().max() + 1e-7, name


class Stubborn(hf.LlamaForCausalLM):
    """A model that computes its loss by itself."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids, **kwargs)
        if labels is not None:
            output["loss"] = torch.nn.functional.cross_entropy(output.logits[:, :-1].mT, labels[:, 1:])
        return output


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "got Linear"),
        (tiny_t5, "causal language model"),
        (lambda: make().model, "loss_function"),
        (lambda: Stubborn(hf.LlamaConfig(**SIZES)), "Stubborn does not compute"),
        (lambda: patch_loss(make()), "unpatch_loss first"),
    ],
)
def test_what_takes_no_other_loss_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        use_loss(model(), EISLLoss())


def test_what_the_loss_lacks_is_named():
    model = use_loss(make(), MultitaskLoss(2))
    with pytest.raises(ValueError, match="needs task_id"):
        model(**draw())


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "logitkit.integrations.transformers")
    with pytest.raises(MissingExtra, match=r"logitkit\[hf\]"):
        importlib.import_module("logitkit.integrations.transformers")
