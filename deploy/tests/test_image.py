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

    def container(self, *arguments, user=None, binds=(), privileged=False, powers=(), env=(), entrypoint=None):
        """runc's process for the image with these arguments; its output is in .log."""
        bundle = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        spec = json.loads((bundle / "config.json").read_text())
        uid, gid = user or map(int, self.config["User"].split(":"))
        process = spec["process"]
        process |= {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
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
        # The network of the machine, as with hostNetwork.
        spec["linux"]["namespaces"] = [ns for ns in spec["linux"]["namespaces"] if ns["type"] != "network"]
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

    def test_a_volume_is_published_by_what_the_manifests_start(self):
        """The node service and the mounter with the users, arguments and capabilities of deploy/kubernetes/alluxio.yaml, on a
        directory in the kubelet's place; this test is the kubelet."""
        try:
            import grpc
        except ImportError:
            self.skipTest("grpc is not installed (apt-get install python3-grpcio)")
        program("alluxio-csi")
        pods = {named(doc): pod_of(doc)["spec"] for doc in documents(DEPLOY / "kubernetes/alluxio.yaml") if pod_of(doc)}
        node, mounter = pods["DaemonSet alluxio-csi-node"], pods["DaemonSet alluxio-csi-mounter"]
        kubelet, source = self.shared("kubelet"), self.source()

        def started(spec, one, binds, **more):
            context = one["securityContext"]
            user = tuple(context.get(key, spec.get("securityContext", {}).get(key)) for key in ("runAsUser", "runAsGroup"))
            paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
            for mount in one["volumeMounts"]:
                path = paths.get(mount["name"], "")
                if path.startswith("/var/lib/kubelet"):
                    host = kubelet / path.removeprefix("/var/lib/kubelet").lstrip("/")
                    host.mkdir(parents=True, exist_ok=True)
                    binds = [*binds, (host, mount["mountPath"], "rshared")]
            env = {item["name"]: item.get("value", "here") for item in one.get("env", [])}
            arguments = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in one.get("args", [])]
            return self.container(
                *one.get("command", []), *arguments, user=user, binds=binds,
                entrypoint=[] if "command" in one else None, privileged=context.get("privileged", False),
                powers=["CAP_" + name for name in context.get("capabilities", {}).get("add", [])],
                env=[f"{key}={value}" for key, value in env.items()], **more,
            )

        for one in mounter["initContainers"]:
            prepared = started(mounter, one, [])
            self.assertEqual(prepared.wait(60), 0, prepared.log.read_text())
        cache = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        os.chown(cache, 65534, 65534)
        # What the volume names, the mounter must see: a directory stands for the bucket here.
        serving = started(mounter, mounter["containers"][0], [(cache, "/cache", "rw"), (source, "/source", "ro")])
        plugin = started(node, next(one for one in node["containers"] if one["name"] == "csi-node"), [])
        socket = kubelet / "plugins/alluxio/csi/csi.sock"
        until("the plugin", socket.exists, plugin)
        until("the mounter", (kubelet / "plugins/alluxio/mounter/mounter.sock").exists, serving)
        self.assertEqual([path.name for path in socket.parent.iterdir()], ["csi.sock"])

        def field(number, value):
            value = value.encode() if isinstance(value, str) else value
            self.assertLess(len(value), 16384)
            size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
            return bytes([number << 3 | 2]) + size + value

        def call(method, *fields):
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                ask = channel.unary_unary(f"/csi.v1.{method}")
                try:
                    return ask(b"".join(fields), timeout=60)
                except grpc.RpcError as error:
                    told = f"{plugin.log.read_text()}{serving.log.read_text()}"
                    raise AssertionError(f"{method}: {error.code()} {error.details()}\n{told}") from error

        self.assertIn(b"alluxio", call("Identity/GetPluginInfo"))
        self.assertEqual(call("Node/NodeGetInfo")[2:6], b"here")
        (kubelet / "pods/uid/volumes").mkdir(parents=True)
        target = "/var/lib/kubelet/pods/uid/volumes/mount"
        # VolumeCapability: mount {}, access_mode {mode: MULTI_NODE_READER_ONLY}.
        reader = field(2, b"") + field(3, b"\x08\x03")
        attribute = field(1, "ufs") + field(2, "file:///source")
        # The node service answers UNAVAILABLE until it has looked at what is there.
        until("readiness", lambda: call("Identity/Probe") == field(1, b"\x08\x01"), plugin)
        call("Node/NodePublishVolume", field(1, "volume"), field(4, target), field(5, reader), b"\x30\x01", field(8, attribute))
        seen = kubelet / "pods/uid/volumes/mount/file"
        self.assertEqual(seen.read_text(), "hello\n")
        # The plugin goes and comes; the reader sees nothing of it.
        with seen.open() as file:
            plugin.stop()
            self.assertEqual(plugin.wait(60), 0, plugin.log.read_text())
            self.assertEqual(file.read(), "hello\n")
        plugin = started(node, next(one for one in node["containers"] if one["name"] == "csi-node"), [])
        until("the plugin", socket.exists, plugin)
        until("readiness", lambda: call("Identity/Probe") == field(1, b"\x08\x01"), plugin)
        self.assertEqual(seen.read_text(), "hello\n")
        call("Node/NodeUnpublishVolume", field(1, "volume"), field(2, target))
        self.assertFalse(seen.exists())


if __name__ == "__main__":
    unittest.main()
