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

from support import ROOT, binaries, free_ports, http, program, run, tool, until

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

    def container(self, *arguments, user=None, binds=(), privileged=False, env=()):
        """runc's process for the image with these arguments; its output is in .log."""
        bundle = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        spec = json.loads((bundle / "config.json").read_text())
        uid, gid = user or map(int, self.config["User"].split(":"))
        process = spec["process"]
        process |= {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "args": self.config["Entrypoint"] + list(map(str, arguments)),
            "env": [*self.config["Env"], *env],
            "cwd": self.config["WorkingDir"],
        }
        process.pop("rlimits", None)
        process["noNewPrivileges"] = True
        powers = ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_CHOWN"] if privileged else []
        process["capabilities"] = {kind: powers for kind in ("bounding", "effective", "permitted")}
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

    def test_a_container_serves_a_mount(self):
        source, shared = self.work / "source", self.work / "shared"
        source.mkdir()
        shared.mkdir()
        (source / "file").write_text("hello\n")
        subprocess.run(["mount", "--bind", shared, shared], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", shared], check=False)
        subprocess.run(["mount", "--make-shared", shared], check=True)
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


if __name__ == "__main__":
    unittest.main()
