"""Every field of every value says what it is, and is renamed, placed, picked and saved by that."""

import dataclasses
import inspect
import typing
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from oracles.helpers import fast_compilation

import tplimit as tp
from tplimit.gaussian import bank
from tplimit.gaussian.bank import Bank
from tplimit.matrices import parts
from tplimit.matrices.parts import Matrix
from tplimit.training import encoding
from tplimit.transforms import opaque, sharding
from tplimit.values import fields, parity, tensors
from tplimit.values.exponents import ORDER_ONE, Exponent, Exponents, Size
from tplimit.values.parity import Parity
from tplimit.values.spans import Span
from tplimit.values.tensors import Tensor

N = tp.Width("n")
MESH = Mesh(np.array(jax.devices()[:1]), ("particles",))
ROLES = {
    value["role"]: value
    for name, value in vars(fields).items() if name.isupper() and "role" in value
}  # fmt: skip


def annotated(annotation):
    """The classes that a type is made of."""
    arguments = typing.get_args(annotation)
    if arguments:
        return {cls for argument in arguments for cls in annotated(argument)}
    return {annotation} if inspect.isclass(annotation) else set()


def kinds(cls):
    """The classes of values that a class stands for: such as the parts of a matrix."""
    own = [kind for kind in cls.__subclasses__() if kind.__module__.startswith("tplimit.")]
    return own if cls.__module__.startswith("tplimit.") else []


def reached(roots):
    """The dataclasses of values, found through the types of their fields, and their kinds."""
    found, left = [], list(roots)
    while left:
        cls = left.pop()
        if cls in found or cls in (Size, Exponents):
            continue
        left += kinds(cls)
        if not dataclasses.is_dataclass(cls):
            continue
        found.append(cls)
        for hint in typing.get_type_hints(cls).values():
            left += annotated(hint)
    return sorted(found, key=lambda cls: cls.__name__)


CLASSES = reached([Tensor, Matrix, Bank])
FIELDS = [
    pytest.param(cls, field, id=f"{cls.__name__}.{field.name}")
    for cls in CLASSES for field in dataclasses.fields(cls)
]  # fmt: skip


def built(cls, counter=None):
    """An instance with every field set, no two labels or arrays alike."""
    counter = counter or iter(range(1, 10_000))
    hints = typing.get_type_hints(cls)
    return cls(**{
        field.name: content(field, hints[field.name], counter) for field in dataclasses.fields(cls)
    })  # fmt: skip


def content(field, hint, counter):
    options = [t for t in typing.get_args(hint) if t is not type(None)]
    kind = typing.get_origin(hint)
    if type(None) in typing.get_args(hint):
        hint = options[0]
        kind, options = typing.get_origin(hint), list(typing.get_args(hint))
    role = field.metadata["role"]
    if role == "static":
        return static(field, hint)
    if role == "axis":
        return 1
    if kind is tuple:
        inner = options
        if Ellipsis in options:
            inner = kinds(options[0]) if inspect.isabstract(options[0]) else options[:1] * 2
        return tuple(content(field, hint, counter) for hint in inner)
    if role == "nested":
        if inspect.isabstract(hint):
            hint = max(kinds(hint), key=lambda cls: len(dataclasses.fields(cls)))
        return built(hint, counter)
    if role in ("spaces", "store"):
        if hint is Parity:
            return built(Parity, counter)
        return frozenset({next(counter), next(counter)}) if kind is frozenset else next(counter)
    shapes = {
        "entries": (2, 8), "along": (3, 8), "pairs": (4, 8), "finite": (3, 3), "common": (3, 3)
    }  # fmt: skip
    return jnp.full(shapes[role], float(next(counter)))


def static(field, hint):
    if field.default is not dataclasses.MISSING:
        return field.default
    known = {Exponents: ORDER_ONE, Exponent: Fraction(0), Size: Size(Fraction(1)), bool: False,
        Span: Span.whole(Size(Fraction(1)))}  # fmt: skip
    return known[hint]


#: How fields that hold labels are called; ``Bank.spaces`` is their number.
LABELS = {
    "space", "row_space", "column_space", "store_spaces", "anchor_spaces", "classes", "store",
    "odd", "unknown", "store_sources", "divided", "asked", "drawn",
}  # fmt: skip


def labels(value, held=False):
    """All labels of spaces and of matrices in a value, told by the names of the fields alone."""
    if isinstance(value, int):
        return [value] if held else []
    if isinstance(value, (tuple, frozenset)):
        return [
            label
            for part in (value if isinstance(value, tuple) else sorted(value))
            for label in labels(part, held)
        ]
    if not dataclasses.is_dataclass(value):
        return []
    return [
        label for field in dataclasses.fields(value)
        for label in labels(getattr(value, field.name), field.name in LABELS)
    ]  # fmt: skip


def alike(a, b):
    """Whether two values have the same form, and the same arrays."""
    same = jax.tree.structure(a) == jax.tree.structure(b)
    return same and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_every_class_is_found():
    own = {
        cls for module in (tensors, parity, bank, parts)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
    }  # fmt: skip
    assert own | set(parts.Part.__subclasses__()) <= set(CLASSES) and len(CLASSES) > 8


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_every_field_says_what_it_is(cls, field):
    """And says what its type and name say."""
    assert ROLES[field.metadata["role"]].items() <= field.metadata.items()
    hint = typing.get_type_hints(cls)[field.name]
    role, kinds = field.metadata["role"], annotated(hint)
    if Parity in kinds:
        assert role == "spaces"
    elif kinds & set(CLASSES):
        assert role == "nested"
    arrays = {"entries", "along", "pairs", "finite", "common"}
    assert (role in arrays) == (hint is typing.Any or "Array" in str(hint))


@pytest.mark.parametrize("cls", CLASSES)
def test_labels_are_renamed_and_nothing_else(cls):
    value = built(cls)
    new = bank.shifted(value, 10_000, 10_000)
    assert labels(new) == [label + 10_000 for label in labels(value)]
    assert alike(bank.shifted(new, -10_000, -10_000), value)
    for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(value), strict=True):
        assert x is y or cls is Parity


@pytest.mark.parametrize("cls", [c for c in CLASSES if c is not Parity])
@pytest.mark.parametrize("leading", [0, 1])
def test_arrays_with_a_width_are_divided(cls, leading):
    value = built(cls)
    value = jax.tree.map(lambda array: np.stack([array] * 2) if leading else array, value)
    value = Tensor((value,), axis=1) if cls is tensors.Term else value
    layout = sharding.layout(MESH, value, leading)
    assert jax.tree.structure(layout) == jax.tree.structure(value)
    for array, place in zip(jax.tree.leaves(value), jax.tree.leaves(layout), strict=True):
        divided = [i for i, names in enumerate(place.spec) if names is not None]
        assert divided == [i for i, length in enumerate(array.shape) if length == 8]
    assert alike(sharding.placed(MESH, value, leading), value)


@pytest.mark.parametrize("cls", CLASSES)
def test_saving_keeps_every_field(cls):
    value = built(cls)
    assert alike(encoding.decode(*encoding.encode(value)), value)


def test_a_replicate_has_what_all_share():
    held = built(Bank)
    both = fields.map_arrays(
        lambda a, _, role: a if role == "common" else np.stack([a, a + 1]), held
    )
    leaf = opaque.LimitValue(
        jax.tree.map(lambda a: np.stack([a, a + 1]), built(Matrix)), None,
        opaque.Revealed(both, opaque.Lineage()),
    )  # fmt: skip
    one = opaque.replicate(leaf, 0)
    assert alike(one._value, built(Matrix)) and alike(one._revealed.bank, held)


def test_a_field_without_a_role_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Forgetful:
        space: int = dataclasses.field(metadata=fields.SPACES)
        other: int = 0

    for walk in (
        lambda v: bank.shifted(v, 1, 1), lambda v: fields.map_arrays(lambda a, *_: a, v)
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"Forgetful\.other does not say"):
            walk(Forgetful(1))


def test_samples_merged_in_one_call_keep_their_sources():
    how = {"width": tp.inf, "samples": 256, "terms": 2}
    alone = tp.sample({"w": tp.normal((N,))}, jax.random.key(0), **how)
    vectors = {"u": tp.normal((N,)), "v": tp.normal((N,))}
    theta = tp.sample({"W": tp.full((N, N), 0.0), **vectors}, jax.random.key(1), **how)

    def moved(t):
        return t | {"W": t["W"] + jnp.outer(t["u"], t["v"]) / t["u"].shape[0]}

    def form(t):
        return ((t["u"] @ t["W"]) * t["v"]).mean()

    with fast_compilation():
        theta = tp.limit(moved)(theta)
        expected = tp.limit(form)(theta)
        merged = tp.limit(lambda w, t: form(t) + 0 * (w * w).mean())(alone["w"], theta)
    assert abs(expected - 1) < 0.1
    np.testing.assert_allclose(merged, expected, rtol=1e-5)


def test_rectifier_of_two_terms_on_a_mesh():
    """Its gradient has a low-rank part with masks."""
    theta = {"u": tp.normal((1, N)), "W": tp.full((N, N), 0.0), "v": tp.normal((N,))}

    def loss(t):
        h = jax.nn.relu(t["u"][0]) @ t["W"]
        return (h @ t["v"] / t["v"].shape[0] - 1) ** 2

    def step(t):
        return t | {"W": t["W"] - 0.1 * jax.grad(loss)(t)["W"]}

    found = []
    for mesh in (None, MESH):
        limit = tp.sample(
            theta, jax.random.key(0), width=tp.inf, samples=64, terms=2, mesh=mesh
        )  # fmt: skip
        with fast_compilation():
            found.append(tp.limit(loss)(tp.limit(step)(limit)))
    np.testing.assert_allclose(*found, rtol=1e-5)
