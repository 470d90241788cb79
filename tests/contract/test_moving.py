"""What the pages for people from elsewhere show: valid parts of use_case.yaml, and a pipeline that compiles."""

import json
import re
from pathlib import Path

import pytest
import yaml
from shopfloor.engines.argo.translation import translate
from shopfloor.pipeline.compilation import compile_pipeline
from shopfloor.settings import load_settings
from shopfloor.use_case import UseCase

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted((PROJECT / "docs" / "how-to").glob("move-from-*.md"))
PARTS = [
    pytest.param(part, id=f"{page.stem} {number}")
    for page in PAGES
    for number, part in enumerate(
        re.findall(r'```yaml title="use_case\.yaml.*?"\n(.*?)```', page.read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_use_case_yaml_on_a_page_is_valid(part):
    whole = yaml.safe_load((PROJECT / "pipelines" / "flight_delays" / "use_case.yaml").read_text(encoding="utf-8"))
    UseCase.model_validate(whole | yaml.safe_load(part))


def test_the_pipeline_of_a_page_asks_a_cluster_for_its_gpu(tmp_path):
    text = (PROJECT / "docs" / "how-to" / "move-from-determined.md").read_text(encoding="utf-8")
    file = tmp_path / "vision_pipeline.py"
    file.write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], encoding="utf-8")
    settings = load_settings("cluster", project_root=PROJECT)

    compiled = compile_pipeline(settings, str(file))
    manifest = translate(compiled.ir, compiled.platforms, {"epochs": 3}, settings)

    assert '"nvidia.com/gpu": "1"' in json.dumps(manifest)
