"""KFP's conditions are read once: what they evaluate to, what Argo is told, and that no value in them is ever code."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kfp.local import io
from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator
from shopfloor.engines.argo.launcher import protect
from shopfloor.pipeline.conditions import Argument, ConditionError, evaluate, literal, parameters, parse, to_argo

from tests.argo import expressions

A, B, C = (f"inputs.parameter_values['{name}']" for name in ("a", "b", "pipelinechannel--c"))
WORDS = [
    "a",
    "",
    "&&",
    "||",
    "!(",
    "!",
    "==",
    "(",
    ")",
    "{",
    "}}",
    "{{=1}}",
    "$(HOME)",
    "R&&D",
    "true",
    "1",
    "é 😀",
    '"',
]
"""Texts that somebody who rewrites the text of a condition would stumble over."""
TRICKY = st.lists(st.sampled_from([*WORDS, "'", "\n", "\\", "x' or 'a' == 'a"]), max_size=4).map("".join)


def argument(name):
    return None if name == "absent" else Argument("text", f"inputs.parameters['{name}']")


def number(name):
    return Argument("number", f"asFloat(inputs.parameters['{name}'])")


@pytest.mark.parametrize(
    ("condition", "values", "holds"),
    [
        (f"{A} == true", {"a": True}, True),
        (f"!({A} == true)", {"a": True}, False),
        (f"{A} == 'x && y' ", {"a": "z"}, False),
        (f"{A} == 'R&&D'", {"a": "R&&D"}, True),
        (f"{A} == 'a || b'", {"a": "a || b"}, True),
        (f"{A} != 'Stop!(now)'", {"a": "Stop!(now)"}, False),
        (f"{A} == 'a'", {"a": "x' or 'a' == 'a"}, False),
        (f"!({A} == 'a')", {"a": "it's"}, True),
        (f"!({A} == 'a')", {"a": "a\nb"}, True),
        (f"{A} == '{{{{$}}}}'", {"a": "{{$}}"}, True),
        (f"int({A}) > 3 && {B} != 'x'", {"a": 4.0, "b": "y"}, True),
        (f"int({A}) >= 4.5", {"a": 4}, False),
        (f"double(int({A})) < {B}", {"a": 1, "b": 1.5}, True),
        (f"{A} < {B}", {"a": 9.0, "b": 10.0}, True),
        (f"{A} < -1", {"a": -2}, True),
        (f"int('3') != 4 || {A} == 'x'", {"a": "y"}, True),
        (f"{A} == 'x'", {"a": None}, False),
        (f"!({A} == 'x')", {"a": None}, True),
        (f"{A} == {B}", {"a": None, "b": None}, True),
        (f"{A} == 'x'", {}, None),
        (f"{A} == 'x' && {B} == 'y'", {"b": "z"}, False),
        (f"{A} == 'x' || {B} == 'y'", {"b": "y"}, True),
        (f"{A} == 'x' && {B} == 'y'", {"b": "y"}, None),
        (f"{A} == 3", {"a": "3"}, False),
    ],
)
def test_a_condition_holds_or_is_left_open(condition, values, holds):
    assert evaluate(parse(condition), values) is holds


@pytest.mark.parametrize("condition", [f"{A} < 3", f"int({A}) == 3"])
def test_what_cannot_be_compared_is_refused_by_its_value(condition):
    with pytest.raises(ConditionError, match="'three'"):
        evaluate(parse(condition), {"a": "three"})


def test_a_condition_tells_what_it_asks():
    assert parameters(parse(f"!(int({A}) == 1) && {B} == {C}")) == {"a", "b", "pipelinechannel--c"}


@pytest.mark.parametrize(
    ("condition", "expression"),
    [
        (f"{A} == 'even'", "(inputs.parameters['a'] == 'even')"),
        (f"{A} == true", "(inputs.parameters['a'] == 'true')"),
        (f"{A}", "(inputs.parameters['a'] == 'true')"),
        (f"int({A}) < 5000", "(asFloat(inputs.parameters['a']) < 5000)"),
        (f"double({A}) >= -0.5", "(asFloat(inputs.parameters['a']) >= -0.5)"),
        (f"{A} > 3", "(asFloat(inputs.parameters['a']) > 3)"),
        (f"{A} == {B}", "(inputs.parameters['a'] == inputs.parameters['b'])"),
        ("int('3') != 4", "(asFloat('3') != 4)"),
        (f"!({A} == 'x')", "!((inputs.parameters['a'] == 'x'))"),
        (
            f"!(int({A}) < 1) && int({A}) > 0",
            "(!((asFloat(inputs.parameters['a']) < 1)) && (asFloat(inputs.parameters['a']) > 0))",
        ),
        ("true == false || 'a' <= 'b'", "(('true' == 'false') || ('a' <= 'b'))"),
        (f"{A} == '== && ('", "(inputs.parameters['a'] == '== && (')"),
        ("inputs.parameter_values['absent'] == 'x'", "false"),
        ("!(inputs.parameter_values['absent'] == 'x')", "true"),
    ],
)
def test_a_condition_becomes_an_expression_of_argo(condition, expression):
    assert to_argo(parse(condition), argument) == expression


def test_numbers_are_compared_as_numbers_by_argo_where_their_type_is_known():
    assert to_argo(parse(f"{A} < {B}"), number) == "(asFloat(inputs.parameters['a']) < asFloat(inputs.parameters['b']))"
    assert to_argo(parse(f"int({A}) == 1"), number) == "(asFloat(inputs.parameters['a']) == 1)"


@pytest.mark.parametrize(
    "condition",
    [
        f"{A} ==",
        f"{A} = 'b'",
        f"{A} == 'b' 'c'",
        f"size({A}) == 1",
        f"({A} == 'b'",
        f"{A} == 'it's'",
        "__import__('os').system('true')",
        "",
    ],
)
def test_what_kfp_does_not_write_is_refused_with_the_condition(condition):
    with pytest.raises(ConditionError, match="condition") as refused:
        parse(condition)

    assert repr(condition) in str(refused.value)


@pytest.mark.parametrize("text", ["it's", "}}", "{{inputs.parameters.x}}", 'a"b', "a\\b", "line\nbreak", "é ✓ 😀"])
def test_a_literal_hides_what_would_end_it_or_its_tag(text):
    text_literal = literal(text)

    assert text_literal[0] == text_literal[-1] == "'"
    assert not set(text_literal[1:-1]) & set("'\"{}\n")
    assert (
        text_literal[1:-1]
        .encode("latin-1", "backslashreplace")
        .decode("unicode_escape")
        .encode("utf-16", "surrogatepass")
        .decode("utf-16")
        == text
    )


SIGNS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
TEXTS = st.sampled_from([A, C]) | st.lists(st.sampled_from(WORDS), max_size=3).map(lambda words: f"'{''.join(words)}'")
NUMBERS = st.just(f"int({B})") | st.integers(-3, 3).map(str) | st.sampled_from(["0.5", "-1.5"])
COMPARISONS = st.one_of(
    st.tuples(TEXTS, SIGNS, TEXTS).map(" ".join),
    st.tuples(NUMBERS, SIGNS, NUMBERS).map(" ".join),
    st.sampled_from(["true", "false"]).map("inputs.parameter_values['d'] == {}".format),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        inner.map("!({})".format),
        st.tuples(inner, inner).map(" && ".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}) || ({pair[1]})"),
    ),
    max_leaves=4,
)
PLAIN = st.sampled_from(["a", "", "{}", "$(HOME)", "é 😀", "x y", "true", "1", "=="])
"""Texts that kfp.local, too, takes for what they are."""


def kfp_local(condition, values):
    """Return what `kfp.local` makes of a condition."""
    store = io.IOStore()
    for name, value in values.items():
        store.put_parent_input(name, value)
    return ConditionEvaluator.evaluate_condition(condition, store)


@given(CONDITIONS, PLAIN, st.integers(-3, 3), PLAIN, st.booleans())
def test_a_condition_holds_where_it_does_in_kfp_local(condition, a, b, c, d):
    # kfp.local takes these signs for operators wherever they stand.
    assume(not any(sign in word for word in condition.split("'")[1::2] for sign in ("&&", "||", "!")))

    values = {"a": a, "b": b, "pipelinechannel--c": c, "d": d}
    assert evaluate(parse(condition), values) == kfp_local(condition, values)


@given(CONDITIONS, TRICKY, st.integers(-3, 3), TRICKY, st.booleans())
def test_argo_is_told_the_condition_that_is_evaluated_here(condition, a, b, c, d):
    values = {"a": a, "b": b, "pipelinechannel--c": c, "d": d}
    # Where an order of texts is asked, those that are protected on their way may have another one.
    assume("{{" not in a + c + condition or not set("<>") & set(condition))
    inputs = {name: protect(value) if isinstance(value, str) else str(value).lower() for name, value in values.items()}

    expression = to_argo(parse(condition), argument, protect)

    assert "}}" not in expression
    assert expressions.evaluate(expression, {"inputs": {"parameters": inputs}}) == evaluate(parse(condition), values)


@given(TRICKY, TRICKY)
def test_no_value_is_ever_part_of_a_condition(one, other):
    condition = parse(f"{A} == {C}")

    assert evaluate(condition, {"a": one, "pipelinechannel--c": other}) == (one == other)


@given(st.lists(st.sampled_from(WORDS), max_size=3).map("".join), TRICKY)
def test_what_kfps_own_compiler_writes_is_read(text, value):
    condition = compiled_condition(text)
    (name,) = parameters(parse(condition))

    assert evaluate(parse(condition), {name: value}) == (value == text)


def compiled_condition(text):
    from kfp.compiler.pipeline_spec_builder import _binary_operations_to_cel_conjunctive
    from kfp.dsl import pipeline_channel

    channel = pipeline_channel.PipelineParameterChannel(name="name", channel_type="String")
    return str(_binary_operations_to_cel_conjunctive([channel == text]))
