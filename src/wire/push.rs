//! What services push, as they write it.

/// Messages, server and client generated from proto/shardgate/push/v1/push.proto.
#[allow(missing_docs)]
pub mod generated {
    tonic::include_proto!("shardgate.push.v1");
}
