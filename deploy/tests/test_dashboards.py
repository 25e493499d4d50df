"""Dashboards and alerts plot metrics and labels that exist: those of common/src/metrics."""
import json
import re
import unittest

import yaml

from support import DEPLOY, ROOT

# The words of PromQL that the expressions may have beside metrics.
WORDS = {"sum", "by", "rate", "increase", "histogram_quantile", "count", "max", "min", "avg"}
# Labels that Prometheus and histograms have, and that queries group by.
LABELS = {"job", "instance", "le", "version"}


def exported():
    """The names under which the declared metrics appear at /metrics."""
    names = {"alluxio_version_info"}
    text = (ROOT / "common/src/metrics/list.rs").read_text()
    declared = re.findall(r'^\s+\w+: (\w+)(?:<\w+, (\w+)>)? = "(\w+)", "', text, re.M)
    for plain, inner, name in declared:
        kind = inner or plain
        names |= {
            "Counter": {f"{name}_total"},
            "Gauge": {name},
            "Histogram": {f"{name}_bucket", f"{name}_sum", f"{name}_count"},
        }[kind]
    for name in re.findall(r'Description = Description \{\s+name: "(\w+)"', text):
        names.add(name if name == "CacheHitRate" else f"{name}_total")
    return names


def labels():
    text = (ROOT / "common/src/metrics/labels.rs").read_text()
    return {
        label: set(re.findall(r'= "(\w+)"', body))
        for label, body in re.findall(r'^    \w+, "(\w+)" \{(.*?)^    \}', text, re.M | re.S)
    }


def expressions():
    dashboard = json.loads((DEPLOY / "dashboards/alluxio.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
        if query:
            yield variable["name"], query[1]
    for group in yaml.safe_load((DEPLOY / "dashboards/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def unknown(expression):
    """The names in an expression that nothing exports."""
    wrong, values = [], labels()
    for selector in re.findall(r"\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|=|!=|!~)"([^"]*)"', selector):
            if label not in values and label not in LABELS:
                wrong.append(label)
            if label in values and "$" not in value:
                wrong += [word for word in value.split("|") if word not in values[label]]
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        wrong += [label for label in re.split(r",\s*", group) if label not in values and label not in LABELS]
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)|\b[0-9.]+(e[0-9]+)?\b", " ", expression)
    return wrong + [name for name in re.findall(r"[A-Za-z_]\w*", bare) if name not in WORDS and name not in exported()]


class Dashboards(unittest.TestCase):
    def test_everything_plotted_exists(self):
        count = 0
        for title, expression in expressions():
            with self.subTest(title):
                self.assertEqual(unknown(expression), [], expression)
            count += 1
        self.assertGreater(count, 40)

    def test_what_does_not_exist_is_found(self):
        self.assertGreater(len(exported()), 40)
        for expression, name in [
            ("rate(alluxio_cached_data_read_bytes[5m])", "alluxio_cached_data_read_bytes"),
            ('alluxio_fuse_open_files{node="a"}', "node"),
            ("sum by (metod) (alluxio_fuse_open_files)", "metod"),
            ('alluxio_cached_directories{state="broken"}', "broken"),
        ]:
            self.assertEqual(unknown(expression), [name])

    def test_the_dashboard_can_be_laid_out(self):
        dashboard = json.loads((DEPLOY / "dashboards/alluxio.json").read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertLess(x, 24)
                    self.assertNotIn((x, y), taken, panel["title"])
                    taken.add((x, y))


if __name__ == "__main__":
    unittest.main()
