//! Compiles the .proto files with protox, a protobuf compiler in Rust: no protoc is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "shardgate/client/v1/client.proto",
            "shardgate/backend/v1/backend.proto",
            "shardgate/registry/v1/registry.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        // Payloads of the service protocol as `Bytes`: the demo services hand them through
        // uncopied.
        .bytes(".shardgate.backend.v1")
        // They hold secrets.
        .skip_debug([
            ".shardgate.client.v1.Auth",
            ".shardgate.client.v1.Resume",
            ".shardgate.client.v1.Resumed",
        ])
        // Clients of the JSON subprotocol get the same messages as plain JSON.
        .type_attribute(".shardgate.client.v1", "#[derive(serde::Serialize)]")
        .compile_fds(files)?;
    // etcd is called, not served.
    let etcd = protox::compile(["etcd/rpc.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(etcd)?;
    Ok(())
}
