import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dbserve.formula import Value, evaluate
from workers.memory import counting_saved_bytes
from workers.models.decoder import (
    DECODER_DEFINITIONS,
    DecoderLayer,
    KeysValues,
    RMSNorm,
    Rotary,
    Shape,
    default_hidden,
    rotary,
)

SHAPE = Shape(width=24, heads=4, kv_heads=2, hidden=40, norm_eps=1e-3, rope_theta=500.0)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def layer_of(shape: Shape = SHAPE) -> DecoderLayer:
    layer = DecoderLayer(shape)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return layer.eval()


def plain_layer(layer: DecoderLayer, shape: Shape, x: Tensor) -> Tensor:
    """One row (T, D), token by token and head by head, rotation as multiplication of complex numbers, in float64."""

    def norm(v: Tensor, weight: Tensor) -> Tensor:
        return v / math.sqrt(float((v * v).sum()) / len(v) + shape.norm_eps) * weight

    def turned(v: Tensor, position: int) -> Tensor:
        half = shape.head_width // 2
        angles = [position / shape.rope_theta ** (i / half) for i in range(half)]
        turn = torch.polar(torch.ones(half, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
        whole = torch.complex(v[:half], v[half:]) * turn
        return torch.cat((whole.real, whole.imag))

    w = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    h, group = shape.head_width, shape.heads // shape.kv_heads
    normed = [norm(v, w["attention_norm.weight"]) for v in x]
    out: list[Tensor] = []
    for t, v in enumerate(x):
        heads: list[Tensor] = []
        for head in range(shape.heads):
            mine, shared = slice(head * h, (head + 1) * h), slice(head // group * h, (head // group + 1) * h)
            query = turned(w["queries.weight"][mine] @ normed[t], t)
            scores = torch.stack(
                [query @ turned(w["keys.weight"][shared] @ normed[s], s) / math.sqrt(h) for s in range(t + 1)]
            )
            shares = scores.exp() / scores.exp().sum()
            heads.append(
                sum((p * (w["values.weight"][shared] @ normed[s]) for s, p in enumerate(shares)), torch.zeros(h))
            )
        v = v + w["output.weight"] @ torch.cat(heads)
        inner = norm(v, w["mlp_norm.weight"])
        gate = w["gate.weight"] @ inner
        out.append(v + w["down.weight"] @ (gate / (1 + (-gate).exp()) * (w["up.weight"] @ inner)))
    return torch.stack(out)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_layer_computes_what_plain_arithmetic_says(kv_heads: int) -> None:
    shape = Shape(24, 4, kv_heads, 40, norm_eps=1e-3, rope_theta=500.0)
    layer, x = layer_of(shape), torch.randn(2, 7, 24)
    got, _ = layer(x, rotary(shape, 0, 7, CPU))
    wanted = torch.stack([plain_layer(layer, shape, row.double()) for row in x]).float()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_norm_are_those_of_finite_differences() -> None:
    norm = RMSNorm(5, eps=1e-2).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    direction, out = torch.randn_like(x), torch.randn_like(x)

    def along(step: float) -> Tensor:  # in float64 throughout: the layer itself computes in float32
        moved = x + step * direction
        return (moved / (moved.square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight * out).sum()

    leaf = x.float().requires_grad_()
    norm.float()
    (norm(leaf) * out.float()).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    assert leaf.grad is not None
    norm.double()
    wanted = (along(1e-5) - along(-1e-5)) / 2e-5
    assert float((leaf.grad.double() * direction).sum()) == pytest.approx(float(wanted), rel=1e-3)
    assert norm.weight.grad is not None
    by_weight = (x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * out).sum((0, 1))
    torch.testing.assert_close(norm.weight.grad.float(), by_weight.float(), rtol=1e-4, atol=1e-5)


def test_scores_depend_on_distances_and_not_on_places() -> None:
    q, k = torch.randn(1, 1, 1, 6), torch.randn(1, 1, 1, 6)

    def score(at: int, to: int) -> Tensor:
        return (rotary(SHAPE, at, at + 1, CPU)(q) * rotary(SHAPE, to, to + 1, CPU)(k)).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102), rtol=1e-4, atol=1e-4)
    assert abs(float(score(5, 2) - score(5, 3))) > 1e-3


@pytest.mark.parametrize("cuts", [(7,), (3, 7), (1, 2, 3, 4, 5, 6, 7), (4, 5, 7)])
def test_tokens_fed_in_pieces_are_answered_as_those_fed_at_once(cuts: tuple[int, ...]) -> None:
    layer, x = layer_of(), torch.randn(2, 7, 24)
    whole, cache = layer(x, rotary(SHAPE, 0, 7, CPU))
    past: KeysValues | None = None
    pieces: list[Tensor] = []
    for start, stop in zip((0, *cuts), cuts, strict=False):
        piece, past = layer(x[:, start:stop], rotary(SHAPE, start, stop, CPU), past)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert past is not None
    assert len(past) == len(cache) == 7
    torch.testing.assert_close(past.keys, cache.keys)


def furthest_leak(attend: Callable[[Tensor], Tensor], tokens: int) -> int:
    """The largest s - t for which output t moves with input s; 0 where the past and the present alone matter."""
    x = torch.randn(1, tokens, 24, requires_grad=True)
    found = -tokens
    for t in range(tokens):
        (grad,) = torch.autograd.grad(attend(x)[0, t].square().sum(), x)
        moved = grad[0].abs().sum(dim=1).nonzero().flatten()
        found = max(found, int(moved.max()) - t)
    return found


def test_no_token_sees_a_later_one() -> None:
    layer = layer_of()
    assert furthest_leak(lambda x: layer(x, rotary(SHAPE, 0, 6, CPU))[0], 6) == 0


def test_a_mask_that_is_one_token_too_wide_would_be_noticed() -> None:
    layer = layer_of()

    def leaky(x: Tensor) -> Tensor:
        """Token t reads the keys of t + 1 as well: the ones seen are shifted by one."""
        turn = rotary(SHAPE, 0, 6, CPU)
        _, cache = layer(x, turn)
        ahead = KeysValues(cache.keys.roll(-1, dims=2), cache.values.roll(-1, dims=2))
        return layer(x, turn, seen=ahead)[0]

    assert furthest_leak(leaky, 6) == 1


def test_a_stream_beside_reads_the_keys_it_is_given_up_to_its_own_place() -> None:
    layer, x, beside = layer_of(), torch.randn(2, 6, 24), torch.randn(2, 6, 24)
    turn = rotary(SHAPE, 0, 6, CPU)
    own, cache = layer(x, turn)
    torch.testing.assert_close(layer(x, turn, seen=cache)[0], own)  # the same queries over the same keys
    whole, _ = layer(beside, turn, seen=cache)
    last, _ = layer(beside[:, 4:], rotary(SHAPE, 4, 6, CPU), seen=cache)
    torch.testing.assert_close(last, whole[:, 4:], rtol=1e-4, atol=1e-5)
    leak = furthest_leak(lambda x: layer(beside[:1], turn, seen=layer(x, turn)[1])[0], 6)
    assert leak == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("width", "heads", "kv_heads", "mlp", "rows", "tokens", "layers"),
    [(48, 4, 2, None, 3, 16, 2), (64, 4, None, 100, 2, 32, 1), (32, 2, 1, None, 5, 7, 3)],
)
def test_formulas_give_the_bytes_that_layers_save(
    precision: str, width: int, heads: int, kv_heads: int | None, mlp: int | None, rows: int, tokens: int, layers: int
) -> None:
    shape = Shape(width, heads, kv_heads or heads, mlp or default_hidden(width))
    stack = nn.ModuleList(DecoderLayer(shape) for _ in range(layers))
    names: dict[str, Value] = {
        "width": width, "heads": heads, "kv_heads": kv_heads, "mlp": mlp,
        "bytes": 2 if precision == "bf16" else 4, "sequence_length": tokens,
    }  # fmt: skip
    for name, definition in DECODER_DEFINITIONS:
        names[name] = evaluate(definition, names)
    start = torch.randn(rows, tokens, width, requires_grad=True)

    def saved(*, streams: int) -> int:
        turn: Rotary = rotary(shape, 0, tokens, CPU)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), counting_saved_bytes(stack) as count:
            x, beside = start + 0, start + 0
            for layer in stack:
                x, cache = layer(x, turn)
                if streams == 2:
                    beside, _ = layer(beside, turn, seen=cache)
        return count.total

    def value(name: str) -> int:
        number = names[name]
        assert isinstance(number, int)
        return number

    assert sum(p.numel() for p in stack.parameters()) == layers * value("layer_parameters")
    per_stack = layers * value("layer_copies") + value("rotary_bytes")
    one = layers * rows * tokens * value("causal_token_bytes") + per_stack
    assert saved(streams=1) == one
    assert saved(streams=2) == one + layers * rows * tokens * value("seeing_token_bytes")
