"""Alert rules and scrape config, by Prometheus's own tool; each alert fires, and does not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.comparison.server_process import ROOT

pytestmark = pytest.mark.system

RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_config_and_rules_are_valid() -> None:
    """As they are shipped, and the config finds the rules beside it."""
    checked = promtool("check", "config", RULES.with_name("prometheus.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout
    assert promtool("check", "rules", RULES).returncode == 0


def test_each_alert_fires_and_does_not() -> None:
    """On what it is for; it is silent before that has lasted, and on what is near to it."""
    checked = promtool("test", "rules", CASES)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = yaml.safe_load(CASES.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fired == silent == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
@pytest.mark.parametrize("fault", ["always", "never"])
def test_a_rule_that_is_wrong_would_be_found(
    rule: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    """One that fires on everything that it looks at, and one that never does."""
    content = yaml.safe_load(RULES.read_text())
    for one in content["groups"][0]["rules"]:
        if one["alert"] == rule["alert"]:
            left, comparison, _ = one["expr"].rpartition("==" if "==" in one["expr"] else ">")
            assert comparison
            one["expr"] = f"{left} {'>=' if fault == 'always' else '<'} -1"
            one["for"] = "0m"
    planted = tmp_path / "alerts.yaml"
    planted.write_text(yaml.safe_dump(content))
    assert promtool("check", "rules", planted).returncode == 0
    cases = yaml.safe_load(CASES.read_text())
    cases["rule_files"] = [str(planted)]
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    assert promtool("test", "rules", tmp_path / "cases.yaml").returncode != 0


def test_each_alert_says_who_and_what_to_do() -> None:
    """A name to look for, a severity to route by, a sentence that helps."""
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels." in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert rule["for"]
