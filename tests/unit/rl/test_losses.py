"""Losses against the formulas, written as loops in float64."""

import math
from dataclasses import replace

import pytest
import torch

from octo_megatron.config.schema import ParallelConfig, RLNode
from octo_megatron.config.schema.rl import KLConfig
from octo_megatron.model.batch import Document, pack
from octo_megatron.model.vocab_parallel import ENTROPY, logprobs_and_entropy
from octo_megatron.rl.losses import ADVANTAGE, ENGINE, LENGTH, OLD, REFERENCE, SEGMENT, WEIGHT, PolicyLoss
from octo_megatron.rl.losses.aggregate import token_weights
from octo_megatron.rl.losses.kl import k1, k2, k3

CASES = {
    "clip": PolicyLoss(),
    "clip, bounds apart": PolicyLoss("clip", 0.2, 0.28, cap=1.5),
    "clip, dual": PolicyLoss("clip", 0.1, 0.5, dual=1.2, cap=100.0),
    "gspo": PolicyLoss("gspo", 0.05, 0.08),
    "cispo": PolicyLoss("cispo", 1.0, 0.4),
    "k1": PolicyLoss(kl_coefficient=0.3, kl_estimator="k1"),
    "k2": PolicyLoss(kl_coefficient=0.3, kl_estimator="k2"),
    "k3": PolicyLoss(kl_coefficient=0.3, kl_estimator="k3"),
    "entropy": PolicyLoss(entropy_coefficient=0.2),
    "all": PolicyLoss("gspo", 0.1, 0.2, 3.0, 1.2, 0.1, "k2", 0.05),
}


def answers(seed: int) -> list[dict[str, list[float]]]:
    """Two answers of 5 and 9 tokens with all that a loss looks at."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for n, advantage in ((5, 1.3), (9, -0.7)):
        new = -3 * torch.rand(n, generator=g, dtype=torch.float64)
        old = new + 0.5 * torch.randn(n, generator=g, dtype=torch.float64)
        out.append(
            {
                "new": new.tolist(),
                OLD: old.tolist(),
                ENGINE: (old + 0.8 * torch.randn(n, generator=g, dtype=torch.float64)).tolist(),
                REFERENCE: (old + 0.3 * torch.randn(n, generator=g, dtype=torch.float64)).tolist(),
                ENTROPY: torch.rand(n, generator=g, dtype=torch.float64).tolist(),
                ADVANTAGE: [advantage] * n,
                WEIGHT: [0.5 + advantage**2] * n,
                LENGTH: [float(n)] * n,
            }
        )
    return out


def by_loops(loss: PolicyLoss, parts: list[dict[str, list[float]]]) -> tuple[float, list[float]]:
    """(sum of the loss, its derivative by each token's log-probability), float64."""
    total, slopes = 0.0, []
    for a in parts:
        n = len(a["new"])
        mean = sum(x - o for x, o in zip(a["new"], a[OLD], strict=True)) / n
        rows = zip(
            a["new"], a[OLD], a[ENGINE], a[REFERENCE], a[ENTROPY], a[ADVANTAGE], a[WEIGHT], strict=True
        )
        for new, old, engine, ref, entropy, adv, weight in rows:
            ratio = math.exp(mean if loss.kind == "gspo" else new - old)
            bounded = min(max(ratio, 1 - loss.low), 1 + loss.high)
            if loss.kind == "cispo":
                gain, slope = bounded * adv * new, bounded * adv
            else:
                gain = min(ratio * adv, bounded * adv)
                # inside the bounds the ratio's own derivative is the ratio
                slope = ratio * adv if gain == ratio * adv else 0.0
                if loss.dual and adv < 0 and gain < loss.dual * adv:
                    gain, slope = loss.dual * adv, 0.0
            importance = min(math.exp(old - engine), loss.cap)
            kl = {"k1": new - ref, "k2": 0.5 * (new - ref) ** 2, "k3": math.exp(ref - new) - 1 - (ref - new)}
            by_kl = {"k1": 1.0, "k2": new - ref, "k3": 1 - math.exp(ref - new)}
            term = -importance * gain + loss.kl_coefficient * kl[loss.kl_estimator]
            total += weight * (term - loss.entropy_coefficient * entropy)
            slopes.append(weight * (-importance * slope + loss.kl_coefficient * by_kl[loss.kl_estimator]))
    return total, slopes


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_formula(name):
    loss, parts = CASES[name], answers(1)
    documents, news = [], []
    for number, part in enumerate(parts):
        n, prompt = len(part["new"]), [0.0] * 3
        extras = {key: torch.tensor(prompt + row) for key, row in part.items() if key != "new"}
        extras[SEGMENT] = torch.full((n + 3,), float(number))
        ids = torch.arange(n + 3)
        documents.append(Document(ids, ids, torch.tensor(prompt + [1.0] * n), extras))
        news.append(torch.tensor([-50.0] * 3 + part["new"]))
    batch = pack(documents, ParallelConfig(), total=40)
    padding = torch.full((batch.length - 20,), -1e30)
    logprobs = torch.cat([*news, padding])[None].float().requires_grad_()
    total, tokens, figures = loss(logprobs, batch)
    expected, slopes = by_loops(loss, parts)
    assert total.item() == pytest.approx(expected, abs=2e-5)
    assert tokens.item() == 14
    total.backward()
    counted = batch.loss_mask > 0
    assert logprobs.grad[counted].tolist() == pytest.approx(slopes, abs=2e-5)
    assert (logprobs.grad[~counted] == 0).all()
    assert 0 <= figures["importance_capped"].item() <= 14


def test_clip_figures_count_the_tokens_at_a_bound():
    parts, loss = answers(2), PolicyLoss(low=0.1, high=0.2)
    hand = {"clipped_high": 0, "clipped_low": 0}
    for a in parts:
        for new, old, adv in zip(a["new"], a[OLD], a[ADVANTAGE], strict=True):
            hand["clipped_high"] += adv > 0 and math.exp(new - old) > 1.2
            hand["clipped_low"] += adv < 0 and math.exp(new - old) < 0.9
    flat = {key: torch.tensor([x for a in parts for x in a[key]]) for key in parts[0]}
    ids = torch.arange(14)
    batch = pack([Document(ids, ids, torch.ones(14), flat)], ParallelConfig())
    figures = loss(flat["new"][None], batch)[2]
    assert {key: int(figures[key]) for key in hand} == hand
    assert int(figures["clipped"]) == sum(hand.values()) > 0


def test_gradient_is_advantage_times_score_at_the_first_update():
    """With new == old == engine the gradient of every loss is -A a token: plain policy gradient."""
    ids, a = torch.arange(2), torch.tensor([1.5, -0.5])
    start = torch.tensor([-1.0, -2.0])
    for kind in ("clip", "cispo"):
        new = start[None].clone().requires_grad_()
        extras = {ADVANTAGE: a, OLD: start, ENGINE: start}
        batch = pack([Document(ids, ids, torch.ones(2), extras)], ParallelConfig())
        PolicyLoss(kind)(new, batch)[0].backward()
        assert new.grad[0].tolist() == pytest.approx((-a).tolist())


def test_kl_estimates_average_to_the_divergence():
    """Over all tokens of two small distributions, weighted by p, k1 and k3 are KL(p || q) exactly."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    divergence = sum(x * math.log(x / y) for x, y in zip(p.tolist(), q.tolist(), strict=True))
    for estimate in (k1, k3):
        assert (p * estimate(p.log(), q.log())).sum().item() == pytest.approx(divergence)
    assert k2(p.log(), q.log()).tolist() == pytest.approx([0.5 * math.log(x / y) ** 2 for x, y in
                                                           zip(p.tolist(), q.tolist(), strict=True)])  # fmt: skip
    assert (k3(p.log(), q.log()) >= 0).all()


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_weights_aggregate_as_named(aggregation):
    lengths, limit = [2, 5, 1], 8
    losses = [[0.5, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [7.0]]
    weights = token_weights(lengths, aggregation, limit)
    found = sum(w * x for w, row in zip(weights, losses, strict=True) for x in row) / sum(lengths)
    expected = {
        "token": sum(map(sum, losses)) / 8,
        "sequence": sum(sum(row) / len(row) for row in losses) / 3,
        "fixed": sum(map(sum, losses)) / (3 * limit),
    }
    assert found == pytest.approx(expected[aggregation])


def test_logprobs_and_entropy_with_their_gradients():
    g = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(1, 4, 7, generator=g)).requires_grad_()
    y = torch.randint(0, 7, (1, 4), generator=g)
    weights = torch.randn(2, 1, 4, generator=g)
    p = z.double().log_softmax(-1)
    expected = [p.gather(-1, y[..., None])[..., 0], -(p.exp() * p).sum(-1)]
    found = logprobs_and_entropy(z, y)
    for a, b in zip(found, expected, strict=True):
        assert a.tolist()[0] == pytest.approx(b.tolist()[0], abs=1e-5)
    (slopes,) = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, expected, strict=True)), z)
    (ours,) = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, found, strict=True)), z)
    assert ours.flatten().tolist() == pytest.approx(slopes.flatten().tolist(), abs=1e-5)


def test_the_loss_takes_its_numbers_from_the_node():
    node = RLNode(
        loss="cispo", clip_ratio_low=0.1, clip_ratio_high=0.3, importance_cap=5.0, clip_ratio_dual=3.0
    )
    assert replace(PolicyLoss.of(node), add_up=None) == PolicyLoss("cispo", 0.1, 0.3, 3.0, 5.0, add_up=None)
    in_reward = replace(node, kl=KLConfig(coefficient=0.1, place="reward"))
    assert PolicyLoss.of(in_reward).kl_coefficient == 0.0
    in_loss = replace(node, kl=KLConfig(coefficient=0.1, estimator="k2"))
    assert (PolicyLoss.of(in_loss).kl_coefficient, PolicyLoss.of(in_loss).kl_estimator) == (0.1, "k2")
