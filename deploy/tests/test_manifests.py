"""Manifests, samples and templates: valid for the API server, consistent with themselves and with the programs."""
import json
import re
import subprocess
import tempfile
import unittest

import jsonschema

from support import CHART, DEPLOY, MANIFESTS, SAMPLES, documents, named, pod_of, program

API = json.loads((DEPLOY / "tests/schemas/kubernetes.json").read_text())
# Kinds of others' CRDs, which Kubernetes' own API does not have.
FOREIGN = {"monitoring.coreos.com/v1 ServiceMonitor"}
# Kinds that only configure a program of others.
NOT_APPLIED = {"test-driver.yaml"}


def problems(doc):
    """What the API server would refuse."""
    kind = f"{doc.get('apiVersion')} {doc.get('kind')}"
    if kind in FOREIGN:
        return []
    if kind not in API["kinds"]:
        return [f"{kind} is not in tests/schemas/kubernetes.json; add it to reduce.py if it exists"]
    schema = {"$ref": f"#/definitions/{API['kinds'][kind]}", "definitions": API["definitions"]}
    validator = jsonschema.Draft7Validator(schema)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(doc)]


def everything():
    """(file name, document) of all that is applied."""
    for path in [*MANIFESTS, *SAMPLES]:
        if path.name in NOT_APPLIED:
            continue
        for doc in documents(path):
            yield path.name, doc


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


class Api(unittest.TestCase):
    def test_everything_is_valid(self):
        count = 0
        for name, doc in everything():
            with self.subTest(file=name, object=named(doc)):
                self.assertEqual(problems(doc), [])
            count += 1
        self.assertGreater(count, 12)

    def test_what_is_wrong_is_found(self):
        for path, value, says in [
            (["spec", "template", "spec", "hostNetwrk"], True, "hostNetwrk"),
            (["spec", "replicas"], "three", "three"),
            (["spec", "template", "spec", "containers", 0, "resources", "limits", "memory"], "1 GB", "1 GB"),
            (["spec", "selector"], None, "None"),
        ]:
            doc = next(doc for name, doc in everything() if named(doc) == "StatefulSet alluxio-worker")
            place = doc
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            self.assertTrue(any(says in problem for problem in problems(doc)), f"{path}: {problems(doc)}")


# What the schemas leave open and the API server does not: the values of enumerations, by field.
ENUMERATIONS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "mountPropagation": {"None", "HostToContainer", "Bidirectional"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "fsGroupPolicy": {"None", "File", "ReadWriteOnceWithFSType"},
    "volumeBindingMode": {"Immediate", "WaitForFirstConsumer"},
    "reclaimPolicy": {"Delete", "Retain"},
    "persistentVolumeReclaimPolicy": {"Delete", "Retain", "Recycle"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "operator": {"Exists", "Equal", "In", "NotIn", "DoesNotExist", "Gt", "Lt"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "volumeLifecycleModes": {"Persistent", "Ephemeral"},
    "policyTypes": {"Ingress", "Egress"},
}
# The same for `type`, by the field that it stands in.
TYPES = {
    "hostPath": {"", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"},
    "updateStrategy": {"RollingUpdate", "OnDelete"},
    "strategy": {"RollingUpdate", "Recreate"},
    "seccompProfile": {"RuntimeDefault", "Localhost", "Unconfined"},
}
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity):
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()
    return float(number) * UNITS[unit]


def meaningless(value, field="", inside=""):
    """What an object says that no API server takes although its shape is right."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from meaningless(child, key, field)
    elif isinstance(value, list):
        for child in value:
            yield from meaningless(child, field, inside)
    elif field == "type" and inside in TYPES and value not in TYPES[inside]:
        yield f"{inside}.type: {value}"
    elif field in ENUMERATIONS and value not in ENUMERATIONS[field]:
        yield f"{field}: {value}"


class Meaning(unittest.TestCase):
    """What the API server checks beyond the shape of an object."""

    def test_words_and_names(self):
        for name, doc in everything():
            with self.subTest(file=name, object=named(doc)):
                self.assertEqual(list(meaningless(doc)), [])
                self.assertRegex(doc["metadata"]["name"], rf"^{NAME.pattern}$")
                self.assertLessEqual(len(doc["metadata"]["name"]), 63)
                for meta in [doc["metadata"], (pod_of(doc) or doc).get("metadata", {})]:
                    for key, value in meta.get("labels", {}).items():
                        self.assertRegex(value, rf"^{LABEL.pattern}$", key)
                        self.assertLessEqual(len(value), 63, key)
                    for key, value in meta.get("annotations", {}).items():
                        self.assertIsInstance(value, str, key)

    def test_pods(self):
        for name, doc in everything():
            pod = pod_of(doc)
            if pod is None:
                continue
            spec = pod["spec"]
            with self.subTest(file=name, object=named(doc)):
                for each in ([one["name"] for one in containers(spec)], [one["name"] for one in spec.get("volumes", [])]):
                    self.assertEqual(len(each), len(set(each)))
                ports = [port for one in spec["containers"] for port in one.get("ports", [])]
                self.assertEqual(len(ports), len({port["containerPort"] for port in ports}))
                self.assertEqual(len(ports), len({port["name"] for port in ports}))
                for port in ports:
                    self.assertRegex(port["name"], r"^(?=.*[a-z])[a-z0-9-]{1,15}$")
                for volume in spec.get("volumes", []):
                    self.assertEqual(len(volume), 2, "a volume has a name and one source")
                if spec.get("restartPolicy", "Always") != "Always":
                    self.assertIn(doc["kind"], ("Pod", "Job"))
                elif doc["kind"] == "Job":
                    self.fail("a Job's pods end: restartPolicy Never or OnFailure")
                for one in containers(spec):
                    names = [item["name"] for item in one.get("env", [])]
                    self.assertEqual(len(names), len(set(names)))
                    for item in one.get("env", []):
                        self.assertEqual(len(item), 2, "a value, or where it is from")
                        # $(NAME) is replaced only by what stands before.
                        for used in re.findall(r"\$\((\w+)\)", str(item.get("value", ""))):
                            self.assertIn(used, names[: names.index(item["name"])])
                    for word in one.get("args", []) + one.get("command", []):
                        self.assertIsInstance(word, str)
                        for used in re.findall(r"\$\((\w+)\)", word):
                            self.assertIn(used, names)
                    resources = one.get("resources", {})
                    for what, most in resources.get("limits", {}).items():
                        if what in resources.get("requests", {}):
                            self.assertLessEqual(amount(resources["requests"][what]), amount(most), what)
                    for mount in one.get("volumeMounts", []):
                        self.assertTrue(mount["mountPath"].startswith("/"))
                    context = one.get("securityContext", {})
                    if context.get("privileged"):
                        self.assertIsNot(context.get("allowPrivilegeEscalation"), False)
                    if context.get("runAsNonRoot", spec.get("securityContext", {}).get("runAsNonRoot")):
                        self.assertGreater(context.get("runAsUser", spec.get("securityContext", {}).get("runAsUser")), 0)

    def test_what_means_nothing_is_found(self):
        self.assertEqual(list(meaningless({"volumes": [{"hostPath": {"type": "Dir"}}], "accessModes": ["RWX"]})),
                         ["hostPath.type: Dir", "accessModes: RWX"])


class Consistency(unittest.TestCase):
    """Names that one object uses and another one, or the same, must have."""

    def test_pods_have_what_they_use(self):
        for name, doc in everything():
            pod = pod_of(doc)
            if pod is None:
                continue
            with self.subTest(file=name, object=named(doc)):
                spec = pod["spec"]
                volumes = {volume["name"] for volume in spec.get("volumes", [])}
                volumes |= {claim["metadata"]["name"] for claim in doc["spec"].get("volumeClaimTemplates", [])}
                used = {mount["name"] for one in containers(spec) for mount in one.get("volumeMounts", [])}
                self.assertEqual(volumes, used)
                for one in containers(spec):
                    places = [mount["mountPath"] for mount in one.get("volumeMounts", [])]
                    self.assertEqual(len(places), len(set(places)))
                    ports = {port["name"] for port in one.get("ports", [])}
                    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                        port = one.get(probe, {}).get("httpGet", {}).get("port")
                        if isinstance(port, str):
                            self.assertIn(port, {p["name"] for c in containers(spec) for p in c.get("ports", [])}, ports)
                    # Only the kubelet's rule for Bidirectional makes privilege necessary.
                    spread = any(m.get("mountPropagation") == "Bidirectional" for m in one.get("volumeMounts", []))
                    privileged = one.get("securityContext", {}).get("privileged", False)
                    self.assertEqual(spread, privileged, one["name"])

    def test_selectors_select(self):
        for path in MANIFESTS:
            docs = documents(path)
            pods = [(doc, pod_of(doc)) for doc in docs if pod_of(doc)]
            for doc in docs:
                spec = doc.get("spec", {})
                if doc["kind"] == "Service":
                    selector, ports = spec["selector"], [port["targetPort"] for port in spec["ports"]]
                elif doc["kind"] == "PodDisruptionBudget":
                    selector, ports = spec["selector"]["matchLabels"], []
                elif doc["kind"] in ("Deployment", "DaemonSet", "StatefulSet"):
                    selector, ports = spec["selector"]["matchLabels"], []
                else:
                    continue
                with self.subTest(file=path.name, object=named(doc)):
                    hit = [pod for _, pod in pods if selector.items() <= pod["metadata"]["labels"].items()]
                    self.assertEqual(len(hit), 1, selector)
                    have = {port["name"] for one in hit[0]["spec"]["containers"] for port in one.get("ports", [])}
                    self.assertLessEqual(set(ports), have)

    def test_what_pods_refer_to_is_in_the_same_manifest(self):
        for path in MANIFESTS:
            docs = documents(path)
            have = {named(doc) for doc in docs}
            for doc in docs:
                pod = pod_of(doc)
                if pod is None:
                    continue
                with self.subTest(file=path.name, object=named(doc)):
                    account = pod["spec"].get("serviceAccountName")
                    if account:
                        self.assertIn(f"ServiceAccount {account}", have)
                    for volume in pod["spec"].get("volumes", []):
                        if "configMap" in volume:
                            self.assertIn(f"ConfigMap {volume['configMap']['name']}", have)


class Rights(unittest.TestCase):
    def test_rights_are_the_least(self):
        for path in MANIFESTS:
            for doc in documents(path):
                for rule in doc.get("rules") or []:
                    with self.subTest(file=path.name, object=named(doc)):
                        self.assertNotIn("secrets", rule["resources"])
                        for words in (rule["resources"], rule["verbs"], rule["apiGroups"]):
                            self.assertNotIn("*", words)

    def test_pods_without_privilege_are_restricted(self):
        for path in MANIFESTS:
            for doc in documents(path):
                pod = pod_of(doc)
                if pod is None:
                    continue
                for one in containers(pod["spec"]):
                    with self.subTest(file=path.name, object=named(doc), container=one["name"]):
                        context = one.get("securityContext", {})
                        self.assertTrue(context.get("readOnlyRootFilesystem"))
                        self.assertIn("requests", one.get("resources", {}))
                        self.assertIn("memory", one["resources"].get("limits", {}))
                        if context.get("privileged"):
                            continue
                        self.assertIs(context.get("allowPrivilegeEscalation"), False)
                        self.assertEqual(context["capabilities"]["drop"], ["ALL"])

    def test_no_manifest_holds_a_secret(self):
        for name, doc in everything():
            if name not in {path.name for path in SAMPLES}:
                self.assertNotEqual(doc["kind"], "Secret", name)


class Images(unittest.TestCase):
    def test_the_list_for_air_gaps_is_complete(self):
        used = set()
        for path in MANIFESTS:
            for doc in documents(path):
                pod = pod_of(doc)
                used |= {one["image"] for one in containers(pod["spec"])} if pod else set()
        lines = (DEPLOY / "images.txt").read_text().splitlines()
        self.assertEqual(used, {line for line in lines if line and not line.startswith("#")})


class Programs(unittest.TestCase):
    """The programs understand what the manifests tell them."""

    def test_every_property_is_known(self):
        alluxio, seen = program("alluxio"), 0
        for path in MANIFESTS:
            for doc in documents(path):
                if doc["kind"] != "ConfigMap" or "alluxio-site.properties" not in doc["data"]:
                    continue
                with self.subTest(file=path.name):
                    with tempfile.TemporaryDirectory() as conf:
                        with open(f"{conf}/alluxio-site.properties", "w", encoding="utf-8") as file:
                            file.write(doc["data"]["alluxio-site.properties"])
                        done = subprocess.run(
                            [alluxio, "conf", "get", "--process", "worker"],
                            env={"ALLUXIO_CONF_DIR": conf, "PATH": "/usr/bin:/bin"},
                            text=True,
                            capture_output=True,
                            timeout=60,
                            check=False,
                        )
                    self.assertEqual((done.returncode, done.stderr), (0, ""))
                    for line in doc["data"]["alluxio-site.properties"].splitlines():
                        self.assertIn(line.split("=")[0], done.stdout)
                seen += 1
        self.assertGreater(seen, 0)

    def test_every_flag_of_the_driver_is_known(self):
        checked = 0
        for name, doc in everything():
            pod = pod_of(doc)
            for one in containers(pod["spec"]) if pod else []:
                args = one.get("args", [])
                if not args or args[0] not in ("csi-node", "csi-controller"):
                    continue
                help_text = subprocess.run(
                    [program("alluxio-csi"), args[0].removeprefix("csi-"), "--help"],
                    text=True, capture_output=True, timeout=60, check=True,
                ).stdout
                for flag in args[1:]:
                    with self.subTest(file=name, object=named(doc), flag=flag):
                        self.assertRegex(help_text, rf"(?m)^\s+(-\w, )?{re.escape(flag.split('=')[0])}\b")
                for item in one.get("env", []):
                    if item["name"].startswith("ALLUXIO_CSI_"):
                        self.assertIn(f"[env: {item['name']}=", help_text)
                checked += 1
        if not checked:
            self.skipTest("no manifest starts the CSI driver")


def merged(under, over):
    """Values as helm lays one set over another."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {key: merged(under[key], over[key]) if key in under and key in over else (over if key in over else under)[key]
            for key in [*under, *(key for key in over if key not in under)]}


class Volumes(unittest.TestCase):
    """What samples and manifests say of volumes is what the driver understands."""

    KEYS = DEPLOY.parent / "csi/src/keys.rs"

    def volumes(self):
        """(file, attributes, parameters) of everything that names the driver."""
        for name, doc in everything():
            spec = doc.get("spec", {})
            if doc["kind"] == "StorageClass" and doc["provisioner"] == "alluxio":
                yield name, doc.get("parameters", {}), True
            if spec.get("csi", {}).get("driver") == "alluxio":
                yield name, spec["csi"].get("volumeAttributes", {}), False
            for volume in (pod_of(doc) or {"spec": {}})["spec"].get("volumes", []):
                if volume.get("csi", {}).get("driver") == "alluxio":
                    yield name, volume["csi"].get("volumeAttributes", {}), False
        driver = documents(DEPLOY / "samples/test-driver.yaml")[0]
        for volume in driver["InlineVolumes"]:
            yield "test-driver.yaml", volume["Attributes"], False

    def test_every_attribute_is_known(self):
        if not self.KEYS.exists():
            self.skipTest("the driver is not in this tree")
        text = self.KEYS.read_text()
        names = dict(re.findall(r'pub const (\w+): &str = "(\w+)";', text))
        specs = re.findall(r'spec\(\s*(\w+),\s*"(\w*)",\s*(true|false),\s*(true|false),', text)
        self.assertGreater(len(specs), 5)
        count = 0
        for file, given, of_class in self.volumes():
            allowed = {names[name] for name, _, attribute, parameter in specs if (parameter if of_class else attribute) == "true"}
            with self.subTest(file=file):
                self.assertLessEqual({key for key in given if not key.startswith("csi.storage.k8s.io/")}, allowed)
                self.assertNotEqual(given.get("mountInPod"), "true", "not offered by this version")
            count += 1
        self.assertGreater(count, 4)

    def test_every_property_of_a_volume_is_known(self):
        reference = (DEPLOY.parent / "docs/CONFIGURATION.md").read_text()
        for file, given, _ in self.volumes():
            for option in given.get("javaOptions", "").split():
                with self.subTest(file=file, option=option):
                    self.assertIn(f"**`{option.removeprefix('-D').split('=')[0]}`**", reference)

    def test_claims_find_their_volumes(self):
        for path in [*MANIFESTS, *SAMPLES]:
            docs = documents(path) if path.name not in NOT_APPLIED else []
            volumes = {doc["metadata"]["name"]: doc["spec"] for doc in docs if doc["kind"] == "PersistentVolume"}
            made = {doc["metadata"]["name"] for doc in docs if doc["kind"] == "StorageClass" and doc["provisioner"] == "alluxio"}
            for doc in docs:
                if doc["kind"] != "PersistentVolumeClaim" or doc["spec"]["storageClassName"] in made:
                    continue
                spec, name = doc["spec"], doc["metadata"]["name"]
                with self.subTest(file=path.name, claim=name):
                    fits = [
                        volume for volume in volumes.values()
                        if volume["storageClassName"] == spec["storageClassName"]
                        and set(spec["accessModes"]) <= set(volume["accessModes"])
                        and volume["capacity"]["storage"] == spec["resources"]["requests"]["storage"]
                        and volume.get("claimRef", {"name": name})["name"] == name
                    ]
                    self.assertEqual(len(fits), 1)
            handles = [spec["csi"]["volumeHandle"] for spec in volumes.values()]
            self.assertEqual(len(handles), len(set(handles)), path.name)


class Suite(unittest.TestCase):
    """test-driver.yaml has the fields that the external storage suite of Kubernetes 1.32 knows."""

    INFO = {"Name", "SupportedFsType", "SupportedMountOption", "RequiredMountOption", "SupportedSizeRange", "Capabilities",
            "RequiredAccessModes", "TopologyKeys", "NumAllowedTopologies", "StressTestOptions", "PerformanceTestOptions"}
    CAPABILITIES = {"persistence", "block", "fsGroup", "volumeMountGroup", "exec", "snapshotDataSource", "pvcDataSource",
                    "multipods", "RWX", "controllerExpansion", "nodeExpansion", "offlineExpansion", "onlineExpansion",
                    "volumeLimits", "singleNodeVolume", "topology", "capacity", "readWriteOncePod", "multiplePVsSameID",
                    "capReadOnlyMany"}

    def test_fields(self):
        driver = documents(DEPLOY / "samples/test-driver.yaml")[0]
        self.assertLessEqual(set(driver), {"DriverInfo", "StorageClass", "InlineVolumes", "ClientNodeName", "Timeouts"})
        self.assertLessEqual(set(driver["DriverInfo"]), self.INFO)
        self.assertLessEqual(set(driver["DriverInfo"]["Capabilities"]), self.CAPABILITIES)
        for volume in driver["InlineVolumes"]:
            self.assertLessEqual(set(volume), {"Attributes", "Shared", "ReadOnly"})


class Chart(unittest.TestCase):
    """What can be said of the chart without helm; test_chart.py has the rest."""

    def test_values_match_their_schema(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        jsonschema.Draft7Validator.check_schema(schema)
        validator = jsonschema.Draft7Validator(schema)
        defaults = documents(CHART / "values.yaml")[0]
        self.assertEqual([error.message for error in validator.iter_errors(defaults)], [])
        sets = sorted((CHART / "ci").glob("*.yaml"))
        self.assertGreaterEqual(len(sets), 3)
        for path in sets:
            with self.subTest(path.name):
                # A set is laid over the defaults.
                values = merged(defaults, (documents(path) or [{}])[0])
                self.assertEqual([error.message for error in validator.iter_errors(values)], [])
        for wrong in [{"worker": {"replica": 3}}, {"etcd": {"replicas": 2}}, {"fuse": {"hostPath": "relative"}}, {"x": 1}]:
            self.assertTrue(list(validator.iter_errors(wrong)), wrong)

    def test_the_schema_knows_every_value(self):
        def walk(values, schema, path):
            if not isinstance(values, dict) or "properties" not in schema:
                return
            self.assertEqual(set(schema["properties"]) - {"global"}, set(values), path)
            self.assertIs(schema.get("additionalProperties"), False, path)
            for key, value in values.items():
                walk(value, schema["properties"][key], f"{path}.{key}")

        schema = json.loads((CHART / "values.schema.json").read_text())
        defaults = documents(CHART / "values.yaml")[0]
        for definition in ("otherImage",):
            schema = json.loads(
                json.dumps(schema).replace(
                    json.dumps({"$ref": f"#/definitions/{definition}"}), json.dumps(schema["definitions"][definition])
                )
            )
        walk(defaults, schema, "values")

    def test_version_is_that_of_the_programs(self):
        chart = documents(CHART / "Chart.yaml")[0]
        cargo = (DEPLOY.parent / "Cargo.toml").read_text()
        version = re.search(r'(?m)^version = "([^"]+)"', cargo)[1]
        self.assertEqual(chart["appVersion"], version)


if __name__ == "__main__":
    unittest.main()
