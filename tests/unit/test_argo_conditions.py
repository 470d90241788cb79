"""KFP's conditions become expressions of Argo that mean the same."""

import pytest
from shopfloor.engines.argo.conditions import Operand, literal, translate

PARAMETER = "inputs.parameter_values['{}']"


def given(name):
    return None if name == "absent" else Operand("text", f"inputs.parameters['{name}']")


@pytest.mark.parametrize(
    ("condition", "expression"),
    [
        ("inputs.parameter_values['a'] == 'even'", "(inputs.parameters['a'] == 'even')"),
        ("inputs.parameter_values['a-b'] == true", "(inputs.parameters['a-b'] == 'true')"),
        ("int(inputs.parameter_values['a']) < 5000", "(asFloat(inputs.parameters['a']) < 5000)"),
        ("double(inputs.parameter_values['a']) >= -0.5", "(asFloat(inputs.parameters['a']) >= -0.5)"),
        ("inputs.parameter_values['a'] > 3", "(asFloat(inputs.parameters['a']) > 3)"),
        (
            "inputs.parameter_values['a'] == inputs.parameter_values['b']",
            "(inputs.parameters['a'] == inputs.parameters['b'])",
        ),
        ("int('3') != 4", "(asFloat('3') != 4)"),
        ("!(inputs.parameter_values['a'] == 'x')", "!((inputs.parameters['a'] == 'x'))"),
        (
            "!(int(inputs.parameter_values['a']) < 1) && int(inputs.parameter_values['a']) > 0",
            "(!((asFloat(inputs.parameters['a']) < 1)) && (asFloat(inputs.parameters['a']) > 0))",
        ),
        ("true == false || 'a' <= 'b'", "(('true' == 'false') || ('a' <= 'b'))"),
        ("inputs.parameter_values['a'] == '== && ('", "(inputs.parameters['a'] == '== && (')"),
        ("inputs.parameter_values['absent'] == 'x'", "false"),
        ("!(inputs.parameter_values['absent'] == 'x')", "false"),
    ],
)
def test_a_condition_becomes_an_expression(condition, expression):
    assert translate(condition, given) == expression


@pytest.mark.parametrize(
    "condition",
    [
        "inputs.parameter_values['a'] ==",
        "inputs.parameter_values['a'] = 'b'",
        "inputs.parameter_values['a'] == 'b' 'c'",
        "size(inputs.parameter_values['a']) == 1",
        "(inputs.parameter_values['a'] == 'b'",
        "inputs.parameter_values['a'] == 'it's'",
        "__import__('os').system('true')",
        "",
    ],
)
def test_what_kfp_does_not_write_is_refused_with_the_condition(condition):
    with pytest.raises(ValueError, match="condition") as refused:
        translate(condition, given)

    assert repr(condition) in str(refused.value)


@pytest.mark.parametrize("text", ["it's", "}}", "{{inputs.parameters.x}}", 'a"b', "a\\b", "line\nbreak", "é ✓ 😀"])
def test_a_literal_hides_what_would_end_it_or_its_tag(text):
    made = literal(text)

    assert made[0] == made[-1] == "'"
    assert not set(made[1:-1]) & set("'\"{}\n")
    assert (
        made[1:-1]
        .encode("latin-1", "backslashreplace")
        .decode("unicode_escape")
        .encode("utf-16", "surrogatepass")
        .decode("utf-16")
        == text
    )
