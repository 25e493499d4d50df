//! The program `alluxio-fuse`; see [`fuse::command`].

fn main() {
    fuse::command::main()
}
