#!/usr/bin/env python3
"""Makes kubernetes.json from the OpenAPI document that Kubernetes publishes: the kinds that our manifests use, without
descriptions, and strict (a field that the API does not have is an error).

    go mod download k8s.io/kubernetes@v1.32.3
    deploy/tests/schemas/reduce.py $(go env GOMODCACHE)/k8s.io/kubernetes@v1.32.3/api/openapi-spec/swagger.json
"""
import json
import pathlib
import sys

KINDS = [
    "io.k8s.api.apps.v1.DaemonSet",
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.apps.v1.StatefulSet",
    "io.k8s.api.batch.v1.Job",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.PersistentVolume",
    "io.k8s.api.core.v1.PersistentVolumeClaim",
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
    "io.k8s.api.rbac.v1.ClusterRole",
    "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
    "io.k8s.api.scheduling.v1.PriorityClass",
    "io.k8s.api.storage.v1.CSIDriver",
    "io.k8s.api.storage.v1.StorageClass",
]
PREFIX = "#/definitions/"


def reduced(schema, wanted):
    """The schema without descriptions, with what it refers to added to wanted."""
    if isinstance(schema, list):
        return [reduced(item, wanted) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str) or key.startswith("x-kubernetes-"):
            continue
        if key == "properties":
            out[key] = {name: reduced(of, wanted) for name, of in value.items()}
            continue
        if key == "$ref":
            wanted.append(value.removeprefix(PREFIX))
        out[key] = reduced(value, wanted)
    if "properties" in out and "additionalProperties" not in out:
        out["additionalProperties"] = False
    # An int-or-string is called a string there.
    if out.get("format") == "int-or-string":
        out = {"type": ["integer", "string"]}
    return out


def main(path):
    spec = json.loads(pathlib.Path(path).read_text())
    definitions, index, wanted = {}, {}, list(KINDS)
    for name in KINDS:
        for kind in spec["definitions"][name]["x-kubernetes-group-version-kind"]:
            group = f"{kind['group']}/" if kind["group"] else ""
            index[f"{group}{kind['version']} {kind['kind']}"] = name
    while wanted:
        name = wanted.pop()
        if name in definitions:
            continue
        definitions[name] = reduced(spec["definitions"][name], wanted)
        if name.endswith(".api.resource.Quantity"):
            definitions[name] = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?([eE][0-9]+|m|k|[KMGTPE]i?)?$"}
    out = {"kinds": index, "definitions": dict(sorted(definitions.items()))}
    target = pathlib.Path(__file__).with_name("kubernetes.json")
    target.write_text(json.dumps(out, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{target}: {len(definitions)} types, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
