//! Compiles the protobuf of the worker's gRPC service, without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/worker.proto");
    let descriptors = protox::compile(["proto/worker.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".alluxio.worker.v1.WriteRequest.data")
        .bytes(".alluxio.worker.v1.UseReply.data")
        .compile_fds(descriptors)?;
    Ok(())
}
