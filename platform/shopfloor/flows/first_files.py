"""The files of a use case that begins with a table: what was decided about it, written down to be read and changed.

Each number in them says where it comes from.
"""

from __future__ import annotations

import json
from typing import Any

from shopfloor.data.profile import Column
from shopfloor.flows.drafting import Draft

WIDTH = 120
"""Characters of a line of code, at most."""
METRICS = {"regression": "validate-rmse"}
"""What a search looks for, by task; of a classification `validate-log_loss`."""
_CASE = """\
# yaml-language-server: $schema=../../docs/reference/use_case.schema.json
# Written by `shopfloor new` from {file}, to be read and changed.
name: {name}
description: {description}
# {why_task}
task: {task}

data:
  path: data/{name}
  tables: [{table}]

features:
  source: {table}
  target: {target}
{unlabelled}{time}{left_out}  # {why_split}
  split: {split}

search:
  metric: {metric}
  mode: min
  trials: 8
  max_concurrent: 2
  seed: 1
  space:
    learning_rate: {{type: float, low: 0.02, high: 0.3, log: true}}
    max_leaf_nodes: {{type: int, low: 4, high: 63, log: true}}
    min_samples_leaf: {{type: int, low: 5, high: 100, log: true}}
    l2_regularization: {{type: float, low: 0.001, high: 10.0, log: true}}

# Columns become numbers before it; a model.py beside this file would do it in another way.
model:
  estimator: sklearn.ensemble.{estimator}
  params: {{max_iter: 200, early_stopping: true}}

gates:
  # What needs no model at all; raise them to what the model is worth to you.
  metrics:
{gates}
  live:
    min_requests: 200
    metrics:
      error_rate: {{max: 0.01}}
      p99_ms: {{max: 200}}
  # How far what is asked may go from the test set: `shopfloor submit pipelines/monitoring.py --use-case {name}`.
  drift: {{max: 0.3}}

serving:
  replicas: 1
  # Of Ray's, for each replica: it mostly waits, and what it holds no search can have.
  cpus: 0.2
"""
_EXPECTATIONS = '''\
"""What {table} must look like before anything is trained on it; numbers in comments are those of {file}."""


def suites():
    """Return the Great Expectations expectations of each table; one that is critical and unmet stops a run."""
    import great_expectations.expectations as gxe

    def filled(column, mostly=1.0, severity="critical"):
        return gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=mostly, severity=severity)

    def between(column, low, high):
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=low, max_value=high, mostly=0.99, severity="warning"
        )

    def among(column, values, severity="warning"):
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=values, severity=severity)

    return {{
        {table_text}: [
{lines}
        ],
    }}
'''
_README = """\
# {name}

{description} It began as `{file}` ({rows:,} rows, {note}), by `shopfloor new`.

- **Task**: {task}, for {why_task}.
- **Split**: {why_split}.
- **Inputs**: {inputs}.
{left_out}
| file | what to look at first |
|---|---|
| `use_case.yaml` | `gates`: they only ask for more than {baseline}; `model` and `search`: the estimator |
| `expectations.py` | what must hold for data that come later |

```sh
shopfloor submit pipelines/training.py --use-case {name}
shopfloor status
```

The table lies in `data/{name}/{table}.parquet`; `dvc add data/{name}` records another version of it.
Commit this folder, `data/{name}.dvc` and `data/.gitignore`.
"""


def files(name: str, table: str, draft: Draft, file: str, rows: int, note: str) -> dict[str, str]:
    """Return the content of each file of a use case's folder.

    Args:
        name: The use case.
        table: Its table.
        draft: What was decided.
        file: Name of the file that it began with.
        rows: Rows of the table.
        note: How the file was read.
    """
    description = f"Predicts {draft.target.name}."
    return {
        "__init__.py": f'"""{_plain(description)}"""\n',
        "use_case.yaml": _case(name, table, draft, file, description),
        "expectations.py": _EXPECTATIONS.format(
            table=table, table_text=_python(table), file=_plain(file), lines=_expectations(draft, rows)
        ),
        "README.md": _readme(name, table, draft, file, rows, note, description),
    }


def _case(name: str, table: str, draft: Draft, file: str, description: str) -> str:
    gates = [
        f"    {metric}: {{{side}: {bound:g}}}  # {_line(origin)}"
        for metric, (side, bound, origin) in draft.gates.items()
    ]
    left_out = [f"    {json.dumps(key, ensure_ascii=False)},  # {_line(why)}" for key, why in draft.left_out.items()]
    return _CASE.format(
        file=_line(file),
        name=name,
        description=_yaml(description),
        why_task=f"{_line(draft.target.name)}: {_line(draft.why_task)}",
        task=draft.task,
        table=table,
        target=_yaml(draft.target.name),
        unlabelled=f"  # {draft.unlabelled:,} rows had none.\n  unlabelled: leave_out\n" if draft.unlabelled else "",
        time=f"  time: {_yaml(draft.time)}\n" if draft.time else "",
        left_out="\n".join(["  leave_out: [", *left_out, "  ]\n"]) if left_out else "",
        why_split=_line(draft.why_split),
        split=json.dumps(draft.split, ensure_ascii=False),
        metric=METRICS.get(draft.task, "validate-log_loss"),
        estimator="HistGradientBoosting" + ("Regressor" if draft.task == "regression" else "Classifier"),
        gates="\n".join(gates),
    )


def _expectations(draft: Draft, rows: int) -> str:
    lines = [f"gxe.ExpectTableRowCountToBeBetween(min_value={max(rows // 2, 1)}),  # {rows:,} rows"]
    for name, column in draft.columns.items():
        if name in draft.inputs or name == draft.target.name or name == draft.time:
            lines += _of_column(column, rows, critical=name not in draft.inputs)
    return "\n".join(f"            {line}" for line in lines)


def _of_column(column: Column, rows: int, critical: bool) -> list[str]:
    """Return the expectations of one column; of an input, those that its values break are warnings."""
    name = _python(column.name)
    if not column.missing:
        lines = [f"filled({name}),"]
    else:
        mostly = max(1 - column.missing / rows - 0.1, 0)
        lines = [f'filled({name}, {mostly:.2g}, "warning"),  # {column.missing:,} are missing']
    if column.kind == "text" and column.values:
        severity = ', "critical"' if critical else ""
        lines += _wrapped(f"among({name}, ", [_python(one) for one in column.values], f"{severity}),", 12)
    elif column.kind in {"whole", "number"} and column.quarters and not critical:
        low, high = (f"{value:.6g}" for value in (column.low, column.high))
        half = " to ".join(f"{value:.4g}" for value in column.quarters)
        lines.append(f"between({name}, {low}, {high}),  # half are {half}")
    return lines


def _wrapped(before: str, items: list[str], after: str, indent: int) -> list[str]:
    """Return a list as Python has it, an item a line where they do not fit into one."""
    line = f"{before}[{', '.join(items)}]{after}"
    if indent + len(line) <= WIDTH:
        return [line]
    return [f"{before}[", *(f"    {item}," for item in items), f"]{after}"]


def _readme(name: str, table: str, draft: Draft, file: str, rows: int, note: str, description: str) -> str:
    left_out = [f"- **Left out**: `{key}`, {why}." for key, why in draft.left_out.items()]
    baseline = "; ".join(dict.fromkeys(origin for _, _, origin in draft.gates.values()))
    return _README.format(
        name=name,
        description=description,
        file=file,
        rows=rows,
        note=note,
        task=draft.task,
        why_task=f"`{draft.target.name}`: {draft.why_task}",
        why_split=draft.why_split,
        inputs=", ".join(f"`{key}` ({column.kind})" for key, column in draft.inputs.items()),
        left_out="".join(f"{line}\n" for line in left_out),
        baseline=baseline,
        table=table,
    )


def _python(value: str) -> str:
    """Return a text as Python has it, in double quotes: JSON's form is one of its own."""
    return json.dumps(value, ensure_ascii=False)


def _yaml(value: Any) -> str:
    """Return a text as YAML has it: JSON's form is one of its own."""
    return json.dumps(value, ensure_ascii=False)


def _line(text: str) -> str:
    """Return a text that can stand behind `#`."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Return a text that can stand within a docstring."""
    return _line(text).replace("\\", "/").replace('"', "'")
