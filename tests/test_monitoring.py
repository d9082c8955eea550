"""What infra/monitoring shows and alarms on is what the code counts; promtool reads it if there."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util.metrics import Counter

from pipeline.ledger import TileRecord
from pipeline.metrics import OF_ACTORS, OF_POOL, OF_RUN, PREFIX, ActorMeters

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "infra" / "monitoring"
BOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
SERIES = {
    f"ray_{PREFIX}_{name}{'_total' if each.kind is Counter else ''}": each
    for name, each in (OF_ACTORS | OF_POOL | OF_RUN).items()
}
OF_RAY = {"SessionName", "NodeAddress", "WorkerId"}
COLUMNS = 24  # of a dashboard
PROMTOOL = shutil.which("promtool")


def board_queries() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def queries() -> list[str]:
    """With a value in the place of what Grafana fills in."""
    asked = [text.replace("$__rate_interval", "1m") for text in board_queries()]
    return asked + [rule["expr"] for rule in RULES]


def test_every_metric_that_is_shown_or_alarmed_on_is_counted_and_the_other_way_round() -> None:
    used = {name for text in queries() for name in re.findall(r"\bray_\w+", text)}
    assert used == set(SERIES)
    tested = re.findall(r"\bray_\w+", (FOLDER / "alerts.test.yaml").read_text())
    assert set(tested) <= set(SERIES)


def test_every_label_that_is_asked_for_is_there() -> None:
    for text in queries():
        for name, asked in re.findall(r"(ray_\w+)\{([^}]*)\}", text):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", asked))
            assert labels <= {*SERIES[name].labels, *OF_RAY}, text
        named = re.findall(r"ray_\w+", text)
        known = OF_RAY.union(*(SERIES[name].labels for name in named))
        for grouped in re.findall(r"by \(([^)]*)\)", text):
            assert {label.strip() for label in grouped.split(",")} <= known, text


def test_counters_are_rated_and_gauges_are_not() -> None:
    for text in queries():
        for name in re.findall(r"(?:rate|increase)\((ray_\w+)", text):
            assert SERIES[name].kind is Counter


def test_every_series_is_documented() -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    for name, each in SERIES.items():
        assert f"`{name.removeprefix(f'ray_{PREFIX}_')}`" in text
        assert all(f"`{label}`" in text for label in each.labels)


def test_panels_have_places_of_their_own_and_one_source() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"] and panel["type"] in ("stat", "timeseries")
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
    assert [each["name"] for each in BOARD["templating"]["list"]] == ["datasource", "session"]
    areas = [panel["gridPos"] for panel in panels]
    assert all(at["x"] >= 0 and at["x"] + at["w"] <= COLUMNS for at in areas)
    for one, other in itertools.combinations(areas, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_alerts_say_what_and_how_grave() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    tested = yaml.safe_load((FOLDER / "alerts.test.yaml").read_text())
    expected = {
        case["alertname"]
        for test in tested["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert expected == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert rule["labels"].keys() == {"severity"}
        assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize("query", queries())
def test_a_parser_of_promql_takes_every_query(query: str) -> None:
    pytest.importorskip("promql_parser", reason="pip install promql-parser").parse(query)


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool (it comes with Prometheus)")
def test_promtool_takes_rules_their_tests_and_the_dashboards_queries(tmp_path: Path) -> None:
    shown = [{"record": f"shown:{number}", "expr": query} for number, query in enumerate(queries())]
    recorded = tmp_path / "shown.yaml"
    recorded.write_text(yaml.safe_dump({"groups": [{"name": "shown", "rules": shown}]}))
    for command in (
        ["check", "rules", str(FOLDER / "alerts.yaml"), str(recorded)],
        ["test", "rules", str(FOLDER / "alerts.test.yaml")],
        ["check", "config", str(FOLDER / "prometheus.yaml")],
    ):
        done = subprocess.run(
            [str(PROMTOOL), *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_counting_does_no_harm_where_there_is_no_ray() -> None:
    meters = ActorMeters()
    with meters.in_hand(), meters.in_hand():
        meters.tile(TileRecord("0.0", (), {"read": 0.0, "wait": -1e-9, "compute": 0.5}), 64)
    meters.add("failures", code="unreadable")
