//! The program `alluxio-csi`; see [`csi::command`].

fn main() -> std::process::ExitCode {
    csi::command::main()
}
