"""The Dockerfile: built by buildah on a base that debootstrap makes, and run by runc, without a registry or a daemon.

Takes some minutes and the network (Debian's archive), so it runs with ALLUXIO_TESTS=full only. The programs are those that
tests/run built; the stage that compiles them is left out (BINARIES)."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

from support import DEPLOY, ROOT, binaries, documents, free_ports, http, named, pod_of, program, tool, until

NEEDED = ("apt-get install buildah runc debootstrap",)


@unittest.skipUnless(os.environ.get("ALLUXIO_TESTS") == "full", "the image is built with ALLUXIO_TESTS=full only")
@unittest.skipUnless(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "containers need root and /dev/fuse")
class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in ("buildah", "runc", "debootstrap"):
            tool(name, *NEEDED)
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="alluxio-image-"))
        cls.addClassCleanup(cls.clean)
        cls.build()

    @classmethod
    def clean(cls):
        """Containers first: what they mounted would be emptied with the directory."""
        cls.buildah("rm", "--all")
        mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed([point for point in mounts if point.startswith(f"{cls.work}/")]):
            subprocess.run(["umount", "-l", point], check=True)
        shutil.rmtree(cls.work)

    @classmethod
    def buildah(cls, *words):
        command = ["buildah", "--root", cls.work / "store", "--runroot", cls.work / "run", "--storage-driver", "vfs", *words]
        env = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(list(map(str, command)), env=env, text=True, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    @classmethod
    def build(cls):
        base = cls.work / "base"
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates,tini", "bookworm", base],
            check=True, stdout=subprocess.DEVNULL, timeout=900,
        )
        programs = cls.work / "programs"
        programs.mkdir()
        for name in ("alluxio", "alluxio-fuse", "alluxio-csi"):
            if (binaries() / name).exists():
                subprocess.run(["strip", "-o", programs / name, binaries() / name], check=True)
        for tag, directory in (("base", base), ("programs", programs)):
            (cls.work / "Copy").write_text("FROM scratch\nCOPY . /\n")
            cls.buildah("bud", "-q", "-f", cls.work / "Copy", "-t", f"localhost/{tag}", directory)
        shutil.rmtree(base)
        cls.buildah(
            "bud", "-q", "--build-arg", "BINARIES=localhost/programs", "--build-arg", "BASE_IMAGE=localhost/base",
            "--target", "runtime", "-t", "localhost/alluxio", ROOT,
        )
        cls.config = json.loads(cls.buildah("inspect", "--type", "image", "localhost/alluxio"))["OCIv1"]["config"]
        cls.rootfs = cls.buildah("mount", cls.buildah("from", "localhost/alluxio"))

    def container(self, *arguments, user=None, binds=(), privileged=False, powers=(), env=(), entrypoint=None,
                  network=None, groups=()):
        """runc's process for the image with these arguments; its output is in .log."""
        bundle = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        spec = json.loads((bundle / "config.json").read_text())
        uid, gid = user or map(int, self.config["User"].split(":"))
        process = spec["process"]
        process |= {
            "terminal": False,
            "user": {"uid": uid, "gid": gid, "additionalGids": list(groups)},
            "args": (self.config["Entrypoint"] if entrypoint is None else entrypoint) + list(map(str, arguments)),
            "env": [*self.config["Env"], *env],
            "cwd": self.config["WorkingDir"],
        }
        process.pop("rlimits", None)
        process["noNewPrivileges"] = True
        if privileged:
            powers = ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER"]
        process["capabilities"] = {kind: list(powers) for kind in ("bounding", "effective", "permitted")}
        spec["root"] = {"path": self.rootfs, "readonly": True}
        # The network of the machine, as with hostNetwork, or another one.
        spec["linux"]["namespaces"] = [ns for ns in spec["linux"]["namespaces"] if ns["type"] != "network"]
        if network:
            spec["linux"]["namespaces"].append({"type": "network", "path": network})
        spec["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]} if privileged else {}
        spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]})
        spec["mounts"] += [
            {"destination": place, "type": "bind", "source": str(source), "options": ["rbind", *options]}
            for source, place, *options in binds
        ]
        if privileged:
            spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/sys")]
            spec["mounts"].append({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "rslave"]})
            spec["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]
            # Bidirectional.
            spec["linux"]["rootfsPropagation"] = "shared"
        (bundle / "config.json").write_text(json.dumps(spec))
        log = open(bundle / "log", "w", encoding="utf-8")
        name = f"alluxio-test-{os.getpid()}-{bundle.name}"
        started = subprocess.Popen(
            ["runc", "--root", self.work / "runc", "run", "--bundle", bundle, name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )
        started.log = bundle / "log"

        def end():
            if started.poll() is None:
                subprocess.run(["runc", "--root", self.work / "runc", "kill", name, "KILL"], check=False)
                started.wait(60)
            subprocess.run(["runc", "--root", self.work / "runc", "delete", "-f", name], check=False, capture_output=True)
            log.close()

        self.addCleanup(end)
        started.stop = lambda: subprocess.run(["runc", "--root", self.work / "runc", "kill", name, "TERM"], check=True)
        return started

    def output(self, *arguments, code=0):
        process = self.container(*arguments)
        self.assertEqual(process.wait(60), code, process.log.read_text())
        return process.log.read_text()

    def test_it_says_what_it_can_do_and_is_small(self):
        self.assertIn("Usage:", self.output(*self.config["Cmd"]))
        self.assertIn("alluxio-fuse 0", self.output("alluxio-fuse", "--version"))
        self.assertIn("/dev/fuse is not in this container", self.output("fuse", "/mnt/x", code=2))
        self.assertEqual(self.config["User"], "1000:1000")
        # Nothing that gains rights: the packages of Debian that do are what minbase has.
        ours = [path for path in ("usr/local/bin/alluxio", "usr/local/bin/alluxio-fuse", "entrypoint.sh")]
        for path in ours:
            self.assertEqual(os.stat(f"{self.rootfs}/{path}").st_mode & 0o7777, 0o755, path)
        self.assertEqual(
            os.path.realpath(f"{self.rootfs}/opt/alluxio/integration/fuse/bin/alluxio-fuse").removeprefix(self.rootfs),
            "/usr/local/bin/alluxio-fuse",
        )

    def source(self):
        """A directory with a file."""
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        directory.chmod(0o755)
        (directory / "file").write_text("hello\n")
        return directory

    def shared(self, name):
        """A directory whose mounts are shared with containers, as the kubelet's and / of a node are."""
        directory = self.work / name
        directory.mkdir()
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        self.addCleanup(subprocess.run, ["umount", "-R", "-l", directory], check=False)
        subprocess.run(["mount", "--make-shared", directory], check=True)
        return directory

    def test_a_container_serves_a_mount(self):
        source, shared = self.source(), self.shared("shared")
        process = self.container(
            "fuse", "--fuse-opts=allow_other,alluxio.fuse.web.port=0", "file:///source", "/alluxio-fuse/mnt",
            user=(0, 0), privileged=True, binds=[(source, "/source", "ro"), (shared, "/alluxio-fuse", "rshared")],
            env=["ALLUXIO_FUSE_RUNTIME_DIR=/tmp/run", "ALLUXIO_FUSE_JAVA_OPTS=-Dalluxio.user.client.cache.dirs=/tmp/cache"],
        )
        file = shared / "mnt/file"
        try:
            until("the mount", file.exists, process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{process.log.read_text()}") from error
        self.assertEqual(file.read_text(), "hello\n")
        process.stop()
        self.assertEqual(process.wait(60), 0, process.log.read_text())
        self.assertFalse(file.exists())

    def test_a_worker_runs_as_an_ordinary_user(self):
        etcd = tool("etcd", "apt-get install etcd-server")
        client, peer = free_ports(2)
        endpoint = f"http://127.0.0.1:{client}"
        server = subprocess.Popen(
            [etcd, "--data-dir", self.work / "etcd", "--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
             "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-cluster", f"default=http://127.0.0.1:{peer}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        until("etcd", lambda: http(f"{endpoint}/health"), server)
        pages = self.work / "pages"
        pages.mkdir()
        os.chown(pages, 1000, 1000)
        process = self.container(
            "worker", binds=[(pages, "/var/lib/alluxio", "rw")],
            env=["ALLUXIO_JAVA_OPTS=-Dalluxio.worker.page.store.dirs=/var/lib/alluxio/pages "
                 f"-Dalluxio.worker.page.store.sizes=16MiB -Dalluxio.etcd.endpoints={endpoint} "
                 "-Dalluxio.worker.hostname=127.0.0.1 -Dalluxio.worker.identity.uuid.file.path=/var/lib/alluxio/identity "
                 "-Dalluxio.worker.rpc.port=0 -Dalluxio.worker.data.port=0 -Dalluxio.worker.web.port=0"],
        )
        web = until("the worker", lambda: re.search(r"serves at .* web (\d+)", process.log.read_text()), process)[1]
        self.assertTrue(http(f"http://127.0.0.1:{web}/health").startswith("OK"))
        process.stop()
        self.assertEqual(process.wait(60), 0, process.log.read_text())

    def test_what_the_manifests_start_serves_a_cluster_and_its_volumes(self):
        """Worker, classic mount, node service and mounter with the users, arguments, volumes and capabilities of
        deploy/kubernetes, on directories in place of a node's; this test is the kubelet."""
        try:
            import grpc
        except ImportError:
            self.skipTest("grpc is not installed (apt-get install python3-grpcio)")
        program("alluxio-csi")
        etcd = tool("etcd", "apt-get install etcd-server")
        docs = documents(DEPLOY / "kubernetes/alluxio.yaml")
        node, source = Node(self), self.source()
        there = (source, "/source", "ro")

        server = node.inside(etcd, "--data-dir", self.work / "cluster-etcd")
        until("etcd", lambda: node.ask("http://127.0.0.1:2379/health"), server)

        pod = node.pod(docs, "StatefulSet alluxio-worker")
        for prepared in pod["initContainers"]:
            self.assertEqual(node.start(pod, prepared).wait(60), 0)
        worker = node.start(pod, pod["containers"][0], [there])
        until("the worker", lambda: node.ask("http://127.0.0.1:30000/health"), worker)
        for expected in ("Mounted", "already"):
            added = node.start(pod, pod["containers"][0] | {"args": ["ensure-mount", "/data", "file:///source"]}, [there])
            self.assertEqual(added.wait(60), 0, added.log.read_text())
            self.assertIn(expected, added.log.read_text())

        # The classic mount.
        pod = node.pod(documents(DEPLOY / "kubernetes/alluxio-fuse.yaml.template"), "DaemonSet alluxio-fuse")
        mount = node.start(pod, pod["containers"][0], [there])
        shown = node.root / "alluxio-fuse/data/file"
        until("the mount", shown.exists, mount)
        self.assertEqual(shown.read_text(), "hello\n")
        until("/health of the mount", lambda: node.ask("http://127.0.0.1:49999/health"), mount)
        mount.stop()
        self.assertEqual(mount.wait(60), 0, mount.log.read_text())
        self.assertFalse(shown.exists())

        # The driver.
        pod = node.pod(docs, "DaemonSet alluxio-csi-mounter")
        for _ in range(2):
            # At the second start the directories are there already, and another user's.
            for prepared in pod["initContainers"]:
                started = node.start(pod, prepared)
                self.assertEqual(started.wait(60), 0, started.log.read_text())
        serving = node.start(pod, pod["containers"][0], [there])
        pod = node.pod(docs, "DaemonSet alluxio-csi-node")
        service = next(one for one in pod["containers"] if one["name"] == "csi-node")
        plugin = node.start(pod, service)
        kubelet = node.root / "var/lib/kubelet"
        socket = kubelet / "plugins/alluxio/csi/csi.sock"
        until("the plugin", socket.exists, plugin)
        until("the mounter", (kubelet / "plugins/alluxio/mounter/mounter.sock").exists, serving)
        self.assertEqual([path.name for path in socket.parent.iterdir()], ["csi.sock"])

        def call(method, *fields):
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                ask = channel.unary_unary(f"/csi.v1.{method}")
                try:
                    return ask(b"".join(fields), timeout=60)
                except grpc.RpcError as error:
                    told = f"{plugin.log.read_text()}{serving.log.read_text()}"
                    raise AssertionError(f"{method}: {error.code()} {error.details()}\n{told}") from error

        def ready():
            return call("Identity/Probe") == field(1, b"\x08\x01")

        self.assertIn(b"alluxio", call("Identity/GetPluginInfo"))
        self.assertEqual(call("Node/NodeGetInfo")[2:6], b"here")
        until("readiness", ready, plugin)
        (kubelet / "pods/uid/volumes").mkdir(parents=True)
        claim = next(doc for doc in docs if doc["kind"] == "PersistentVolume")["spec"]["csi"]["volumeAttributes"]
        # VolumeCapability: mount {}, access_mode {mode: MULTI_NODE_READER_ONLY}.
        reader = field(5, field(2, b"") + field(3, b"\x08\x03"))
        volumes = {"standalone": ({"ufs": "file:///source"}, "file"), "cluster": (claim, "data/file")}
        for volume, (attributes, path) in volumes.items():
            context = b"".join(field(8, field(1, key) + field(2, value)) for key, value in attributes.items())
            target = f"/var/lib/kubelet/pods/uid/volumes/{volume}"
            call("Node/NodePublishVolume", field(1, volume), field(4, target), reader, b"\x30\x01", context)
            self.assertEqual((kubelet / f"pods/uid/volumes/{volume}/{path}").read_text(), "hello\n")
        # The plugin goes and comes; a reader sees nothing of it.
        with (kubelet / "pods/uid/volumes/cluster/data/file").open() as file:
            plugin.stop()
            self.assertEqual(plugin.wait(60), 0, plugin.log.read_text())
            self.assertEqual(file.read(), "hello\n")
        plugin = node.start(pod, service)
        until("the plugin", socket.exists, plugin)
        until("readiness", ready, plugin)
        for volume, (_, path) in volumes.items():
            seen = kubelet / f"pods/uid/volumes/{volume}/{path}"
            self.assertEqual(seen.read_text(), "hello\n")
            call("Node/NodeUnpublishVolume", field(1, volume), field(2, f"/var/lib/kubelet/pods/uid/volumes/{volume}"))
            self.assertFalse(seen.exists())
        worker.stop()
        self.assertEqual(worker.wait(60), 0, worker.log.read_text())


def field(number, value):
    """A field of a protobuf message with a length: text, bytes or a message."""
    value = value.encode() if isinstance(value, str) else value
    assert len(value) < 16384
    size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
    return bytes([number << 3 | 2]) + size + value


class Node:
    """What a node has for pods: directories, a network, volumes as the kubelet makes them."""

    def __init__(self, test):
        self.test = test
        self.root = test.shared("node")
        # A network of its own, so that the ports of the manifests are free.
        keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        test.addCleanup(keeper.wait)
        test.addCleanup(keeper.kill)
        self.network = f"/proc/{keeper.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        until("a network", lambda: os.readlink(self.network) != own, keeper)
        self.loopback()

    def loopback(self):
        """Brings lo up without the tools that a small machine lacks."""
        script = (
            "import fcntl, socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            "fcntl.ioctl(s, 0x8914, struct.pack('16sh22x', b'lo', 0x41))"
        )
        subprocess.run(["nsenter", f"--net={self.network}", sys.executable, "-c", script], check=True)

    def inside(self, *command):
        process = subprocess.Popen(
            ["nsenter", f"--net={self.network}", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.test.addCleanup(process.wait)
        self.test.addCleanup(process.terminate)
        return process

    def ask(self, url):
        script = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=5).read().decode())"
        done = subprocess.run(
            ["nsenter", f"--net={self.network}", sys.executable, "-c", script], text=True, capture_output=True, check=False
        )
        return done.stdout.strip()

    def pod(self, docs, name):
        """The pod of an object, with a directory for each of its volumes."""
        doc = next(doc for doc in docs if named(doc) == name)
        spec = pod_of(doc)["spec"] | {"directories": {}}
        group = spec.get("securityContext", {}).get("fsGroup")
        for volume in spec["volumes"] + [{"name": c["metadata"]["name"]} for c in doc["spec"].get("volumeClaimTemplates", [])]:
            path = self.test.work / name.replace(" ", "-") / volume["name"]
            if "hostPath" in volume:
                path = self.root / volume["hostPath"]["path"].lstrip("/")
                if volume["hostPath"]["type"] == "CharDevice" or volume["name"] == "sys":
                    continue
            path.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                data = next(d for d in docs if named(d) == f"ConfigMap {volume['configMap']['name']}")["data"]
                for file, text in data.items():
                    (path / file).write_text(re.sub(r"http://alluxio-etcd[^:]*:", "http://127.0.0.1:", text))
            elif "hostPath" not in volume:
                os.chown(path, 0, group or 0)
                path.chmod(0o777 if "emptyDir" in volume else 0o2775)
            spec["directories"][volume["name"]] = path
        return spec

    def start(self, spec, one, binds=()):
        """A container of a pod."""
        binds, context = list(binds), one["securityContext"]
        for mount in one["volumeMounts"]:
            if mount["name"] in spec["directories"]:
                kind = {"Bidirectional": "rshared", "HostToContainer": "rslave"}.get(mount.get("mountPropagation"), "rprivate")
                options = (kind, "ro") if mount.get("readOnly") else (kind,)
                binds.append((spec["directories"][mount["name"]], mount["mountPath"], *options))
        field_of = {"status.podIP": "127.0.0.1", "spec.nodeName": "here"}
        env = {}
        for item in one.get("env", []):
            text = item["value"] if "value" in item else field_of[item["valueFrom"]["fieldRef"]["fieldPath"]]
            env[item["name"]] = re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], text)
        arguments = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in one.get("args", [])]
        whole = spec.get("securityContext", {})
        return self.test.container(
            *one.get("command", []), *arguments, binds=binds, network=self.network,
            user=tuple(context.get(key, whole.get(key)) for key in ("runAsUser", "runAsGroup")),
            groups=[whole["fsGroup"]] if "fsGroup" in whole else [],
            entrypoint=[] if "command" in one else None, privileged=context.get("privileged", False),
            powers=["CAP_" + name for name in context.get("capabilities", {}).get("add", [])],
            env=[f"{key}={value}" for key, value in env.items()],
        )


if __name__ == "__main__":
    unittest.main()
