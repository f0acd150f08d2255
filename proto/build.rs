//! Compiles the .proto files with protox, a protobuf compiler in Rust: no protoc is needed.

use tonic_prost_build::Builder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files = protox::compile(
        [
            "shardgate/client/v1/client.proto",
            "shardgate/backend/v1/backend.proto",
            "shardgate/registry/v1/registry.proto",
        ],
        ["proto"],
    )?;
    // Called by tests and by whoever builds on the library. Payloads as `Bytes`: they are handed on
    // uncopied.
    let push = protox::compile(["shardgate/push/v1/push.proto"], ["proto"])?;
    let config = tonic_prost_build::configure().bytes(".shardgate.push.v1");
    let config = json_requests(json_answers(config));
    config.compile_fds(push)?;
    files.file.retain(|file| file.package() != "shardgate.push.v1");
    let mut config = tonic_prost_build::configure();
    // Clients of the JSON subprotocol get the same messages as plain JSON. What has a payload of
    // either kind is written by hand (src/wire/groups.rs).
    let client = files.file.iter().filter(|file| file.package() == "shardgate.client.v1");
    for name in client.flat_map(|file| &file.message_type).map(|message| message.name()) {
        if !["Kept", "Publish"].contains(&name) {
            let path = format!(".shardgate.client.v1.{name}");
            config = config.type_attribute(path, "#[derive(serde::Serialize)]");
        }
    }
    config
        .build_client(false)
        // Payloads of the service protocol as `Bytes`: the demo services hand them through
        // uncopied.
        .bytes(".shardgate.backend.v1")
        .extern_path(".shardgate.push.v1", "crate::wire::push::generated")
        // They hold secrets.
        .skip_debug([
            ".shardgate.client.v1.Auth",
            ".shardgate.client.v1.Resume",
            ".shardgate.client.v1.Resumed",
        ])
        .field_attribute(
            ".shardgate.client.v1.Person.info",
            "#[serde(serialize_with = \"crate::wire::groups::write_value\")]",
        )
        .bytes(".shardgate.client.v1.Kept")
        .compile_fds(files)?;
    // etcd is called, not served.
    let etcd = protox::compile(["etcd/rpc.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(etcd)?;
    Ok(())
}

/// Answers of the HTTP door. `Kept` is written by hand (src/wire/push/json.rs).
fn json_answers(mut config: Builder) -> Builder {
    for name in [
        "SendResponse",
        "PushResult",
        "Counts",
        "ShardCounts",
        "Position",
        "GroupPosition",
        "JoinResponse",
        "LeaveResponse",
        "Member",
        "MembersResponse",
        "CountResponse",
        "GroupCount",
        "HistoryResponse",
        "ForgetResponse",
        "SessionsResponse",
        "Session",
        "DisconnectResponse",
    ] {
        let path = format!(".shardgate.push.v1.{name}");
        let leave_out = "#[serde(skip_serializing_if = \"crate::wire::push::is_default\")]";
        config = config
            .type_attribute(&path, "#[derive(serde::Serialize)]")
            .field_attribute(&path, leave_out);
    }
    config.field_attribute(
        ".shardgate.push.v1.Member.info",
        "#[serde(serialize_with = \"crate::wire::groups::write_value\")]",
    )
}

/// Calls of the HTTP door, but for `SendRequest`, which is read by hand
/// (src/wire/push/json.rs). Numbers of 32 bits and JSON values are read as in that.
fn json_requests(mut config: Builder) -> Builder {
    for (name, by_hand) in [
        ("JoinRequest", &[("info", "value_text")][..]),
        ("LeaveRequest", &[]),
        ("MembersRequest", &[("limit", "narrow")]),
        ("CountRequest", &[]),
        ("HistoryRequest", &[("limit", "narrow")]),
        ("ForgetRequest", &[]),
        ("SessionsRequest", &[]),
        ("DisconnectRequest", &[("code", "narrow")]),
        ("Position", &[]),
    ] {
        let path = format!(".shardgate.push.v1.{name}");
        let derive = "#[derive(serde::Deserialize)] #[serde(default, deny_unknown_fields)]";
        config = config.type_attribute(&path, derive);
        for (field, read) in by_hand {
            let read = format!("crate::wire::push::json::{read}");
            let with = format!("#[serde(deserialize_with = \"{read}\")]");
            config = config.field_attribute(format!("{path}.{field}"), with);
        }
    }
    config
}
