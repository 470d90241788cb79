"""What a deployer and a replica agree on is told apart by its content alone."""

import json

from shopfloor.serving.contract import Assignment, Config, OnlineConfig


def config(entities: dict[str, str]) -> Config:
    online = OnlineConfig(
        use_case="flights",
        code_root="/project",
        service="flights",
        entities=entities,
        deadline_ms=50,
        fallback="missing",
        feature_registry="registry.db",
        online_store="online.db",
    )
    return Config(use_case="flights", tracking_uri="http://127.0.0.1:5000", online=online)


def test_a_configuration_that_came_back_from_the_registry_has_the_digest_that_it_left_with():
    assignment = Assignment(challenger="1")
    declared = config({"tailnum": "string", "carrier": "string"})
    text = json.dumps(declared.model_dump(mode="json"), sort_keys=True)

    assert Config.model_validate_json(text).digest(assignment) == declared.digest(assignment)


def test_another_entity_makes_another_digest():
    assignment = Assignment(challenger="1")

    assert config({"carrier": "string"}).digest(assignment) != config({"origin": "string"}).digest(assignment)
