//! Programs of other languages that push.

use crate::support::{Checkout, OneFile, available, get_json, run, succeeds};

const TOKEN: &str = "token-of-the-script-01";

#[test]
fn python_pushes_by_grpc_and_http_to_a_client_in_a_group() {
    let test = "python_pushes_by_grpc_and_http_to_a_client_in_a_group";
    let packages = "import grpc, grpc_tools.protoc, websockets.asyncio.client";
    let found = succeeds("python3", &["-c", packages]);
    if !available(test, "python3 with grpcio, grpcio-tools and websockets", found) {
        return;
    }
    let gateway = OneFile::start(&format!(
        "demo.enabled = false\n\
         push.listen = \"127.0.0.1:0\"\n\
         [[push_caller]]\nname = \"script\"\ntoken = \"{TOKEN}\"\nto = [\"session\", \"group\"]\n\
         groups = [\"room:*\"]\nmay = [\"push\", \"join\", \"read\"]\n\
         [[group]]\nname = \"room:*\"\n"
    ));
    let stats = get_json(gateway.admin, "/stats");
    let doors = stats["push"]["address"].as_str().expect("they are open");
    let checkout = Checkout::new();
    let url = format!("ws://{}/ws", gateway.ws);
    let line = format!("python3 tests/interop/push.py {url} {doors} {TOKEN}");
    let said = run(&mut checkout.shell(&line));
    assert!(said.contains("all as it should be"), "{said}");
    assert_eq!(gateway.process.stop().code(), Some(0));
}
