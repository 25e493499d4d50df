"""The chart: rendered for several sets of values, and equal to the manifests that were rendered from it."""
import shutil
import subprocess
import tempfile
import unittest

import yaml

from support import CHART, DEPLOY, UniqueKeys, named, pod_of, tool
from test_manifests import problems

SETS = sorted((CHART / "ci").glob("*.yaml"))
INSTALL = "go install helm.sh/helm/v3/cmd/helm@v3.18.6"


def render(*arguments, code=0):
    done = subprocess.run(
        [tool("helm", INSTALL), "template", "alluxio", CHART, "--kube-version", "1.31.0", *arguments],
        text=True, capture_output=True, timeout=120, check=False,
    )
    assert (done.returncode == 0) == (code == 0), f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


class Rendered(unittest.TestCase):
    def test_manifests_are_what_the_chart_says(self):
        subprocess.run([DEPLOY / "render", "--check"], check=True, timeout=120)

    def test_a_chart_that_changed_is_noticed_without_helm(self):
        with tempfile.TemporaryDirectory() as copy:
            for name in ("charts", "kubernetes", "render"):
                (shutil.copytree if (DEPLOY / name).is_dir() else shutil.copy)(DEPLOY / name, f"{copy}/{name}")
            env = {"PATH": "/usr/bin:/bin"}
            if shutil.which("helm", path=env["PATH"]):
                self.skipTest("helm is where it cannot be hidden")
            subprocess.run([f"{copy}/render", "--check"], env=env, check=True, timeout=60)
            with open(f"{copy}/charts/alluxio/values.yaml", "a", encoding="utf-8") as file:
                file.write("# another line\n")
            done = subprocess.run([f"{copy}/render", "--check"], env=env, text=True, capture_output=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("run deploy/render", done.stderr)


class WithHelm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        tool("helm", INSTALL)

    def test_lint(self):
        for path in SETS:
            done = subprocess.run(
                ["helm", "lint", "--strict", CHART, "--kube-version", "1.31.0", "--values", path],
                text=True, capture_output=True, timeout=120, check=False,
            )
            self.assertEqual(done.returncode, 0, f"{path.name}: {done.stdout}{done.stderr}")

    def test_every_set_of_values_renders_to_valid_objects(self):
        for path in SETS:
            docs = [doc for doc in yaml.load_all(render("--values", path), UniqueKeys) if doc]
            self.assertGreater(len(docs), 3, path.name)
            names = [named(doc) for doc in docs]
            self.assertEqual(len(names), len(set(names)), path.name)
            for doc in docs:
                with self.subTest(values=path.name, object=named(doc)):
                    self.assertEqual(problems(doc), [])
                    pod = pod_of(doc)
                    if pod:
                        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
                        volumes |= {claim["metadata"]["name"] for claim in doc["spec"].get("volumeClaimTemplates", [])}
                        every = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
                        self.assertEqual(volumes, {m["name"] for one in every for m in one.get("volumeMounts", [])})

    def test_another_release_has_names_of_its_own(self):
        first = {named(doc) for doc in yaml.load_all(render(), UniqueKeys) if doc}
        done = subprocess.run(
            ["helm", "template", "other", CHART, "--kube-version", "1.31.0"], text=True, capture_output=True, timeout=120, check=True
        )
        second = {named(doc) for doc in yaml.load_all(done.stdout, UniqueKeys) if doc}
        # The driver is one for all; the cluster's volume is named after the cluster, not the release.
        shared = {"CSIDriver alluxio", "StorageClass alluxio-cluster-fuse", "PersistentVolume alluxio-cluster-fuse"}
        self.assertLessEqual(first & second, shared | {"PersistentVolumeClaim alluxio-cluster-fuse"})

    def test_values_that_make_no_sense_are_refused_with_the_fix(self):
        for arguments, says in [
            (["--set", "worker.replica=2"], "replica"),
            (["--set", "etcd.enabled=false"], "set etcd.endpoints"),
            (["--set", "worker.kind=DaemonSet"], "use hostPath or emptyDir"),
            (["--set", "worker.pageStore.dirs[0].name=a,worker.pageStore.dirs[0].size=1Gi,worker.pageStore.dirs[0].type=hostPath"], "needs hostPath"),
            (["--set", r"properties.alluxio\.cluster\.name=x"], "set by the chart"),
            (["--set", r"properties.s3a\.secretKey=x"], "is a secret"),
            (["--set", "etcd.tls.enabled=true"], "etcd.tls.existingSecret"),
            (["--set", "csi.enabled=true,csi.controller.enabled=false,csi.storageClasses[0].name=a,csi.storageClasses[0].parameters.ufs=s3://b"],
             "need csi.controller.enabled"),
            (["--set", "mounts[0].path=/a/b,mounts[0].ufs=s3://b"], "/mounts/0/path"),
        ]:
            with self.subTest(arguments):
                self.assertIn(says, render(*arguments, code=1))

    def test_the_operators_names_stand(self):
        docs = {named(doc): doc for doc in yaml.load_all(render("--set", "fuse.enabled=true,csi.enabled=true"), UniqueKeys) if doc}
        fuse = pod_of(docs["DaemonSet alluxio-fuse"])["spec"]
        mount = next(m for m in fuse["containers"][0]["volumeMounts"] if m["mountPath"] == "/alluxio-fuse")
        self.assertEqual(mount["mountPropagation"], "Bidirectional")
        volumes = {volume["name"]: volume for volume in fuse["volumes"]}
        self.assertEqual(volumes[mount["name"]]["hostPath"]["path"], "/alluxio-fuse")
        self.assertEqual(volumes["alluxio-domain"]["hostPath"]["path"], "/tmp/alluxio-domain")
        self.assertIn({"name": "alluxio-domain", "mountPath": "/opt/domain", "mountPropagation": "HostToContainer"},
                      fuse["containers"][0]["volumeMounts"])
        self.assertEqual(docs["CSIDriver alluxio"]["spec"]["attachRequired"], False)
        self.assertEqual(docs["CSIDriver alluxio"]["spec"]["podInfoOnMount"], True)
        self.assertIn("PersistentVolumeClaim alluxio-cluster-fuse", docs)
        self.assertEqual(docs["StorageClass alluxio-cluster-fuse"]["volumeBindingMode"], "WaitForFirstConsumer")


if __name__ == "__main__":
    unittest.main()
