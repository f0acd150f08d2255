//! Requests as clients write them that no test can run: their lines, in their order.

use super::*;

/// Client, the lines of its request behind the request line, and its encoding if it names one.
const CLIENTS: [(&str, &[&str], Option<&str>); 12] = [
    (
        "Safari 18",
        &[
            "Host: gate.example:9000",
            "Origin: https://game.example",
            "Sec-WebSocket-Protocol: shardgate.v1.json",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Sec-Fetch-Dest: websocket",
            "Sec-Fetch-Mode: websocket",
            "Sec-Fetch-Site: same-site",
            "Accept: */*",
            "Accept-Language: en-GB,en;q=0.9",
            "Accept-Encoding: gzip, deflate",
            "Cookie: a=\"b\"; c=d",
            "User-Agent: Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)",
            "Pragma: no-cache",
            "Cache-Control: no-cache",
            "Connection: Upgrade",
            "Upgrade: websocket",
        ],
        Some(JSON),
    ),
    (
        "Safari 12",
        &[
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Host: gate.example:9000",
            "Origin: https://game.example",
            "Pragma: no-cache",
            "Cache-Control: no-cache",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Extensions: x-webkit-deflate-frame",
            "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_13_6)",
        ],
        None,
    ),
    (
        "Firefox",
        &[
            "Host: gate.example:9000",
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101",
            "Accept: */*",
            "Accept-Encoding: gzip, deflate, br, zstd",
            "Sec-WebSocket-Version: 13",
            "Origin: https://game.example",
            "Sec-WebSocket-Protocol: shardgate.v1.json, shardgate.token.a.b.c",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Sec-WebSocket-Key: KEY",
            "DNT: 1",
            "Connection: keep-alive, Upgrade",
            "Sec-Fetch-Dest: empty",
            "Pragma: no-cache",
            "Upgrade: websocket",
        ],
        Some(JSON),
    ),
    (
        "OkHttp",
        &[
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Host: gate.example:9000",
            "Accept-Encoding: gzip",
            "User-Agent: okhttp/4.12.0",
        ],
        None,
    ),
    (
        "Unity, by .NET's ClientWebSocket on Mono",
        &[
            "Host: gate.example:9000",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Protocol: shardgate.v1.protobuf",
        ],
        Some(PROTOBUF),
    ),
    (
        "Unity, by websocket-sharp",
        &[
            "User-Agent: websocket-sharp/1.0",
            "Host: gate.example:9000",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
             client_no_context_takeover",
        ],
        None,
    ),
    (
        "Godot 4",
        &[
            "Host: gate.example:9000",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: shardgate.v1.json,shardgate.v1.protobuf",
        ],
        Some(JSON),
    ),
    (
        "Godot 3, by libwebsockets",
        &[
            "Pragma: no-cache",
            "Cache-Control: no-cache",
            "Host: gate.example",
            "Origin: https://game.example",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Protocol: shardgate.v1.json",
            "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover",
            "Sec-WebSocket-Version: 13",
        ],
        Some(JSON),
    ),
    (
        ".NET 8",
        &[
            "Host: gate.example:9000",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        ],
        None,
    ),
    (
        ".NET Framework",
        &[
            "Upgrade: websocket",
            "Connection: Upgrade,Keep-Alive",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Host: gate.example:9000",
        ],
        None,
    ),
    (
        "Swift, by URLSession",
        &[
            "Host: gate.example:9000",
            "Sec-WebSocket-Key: KEY",
            "Sec-WebSocket-Version: 13",
            "Upgrade: websocket",
            "Accept: */*",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "User-Agent: game/1 CFNetwork/1568.100.1 Darwin/24.0.0",
            "Accept-Language: de-DE,de;q=0.9",
            "Accept-Encoding: gzip, deflate",
            "Connection: Upgrade",
        ],
        None,
    ),
    (
        "libsoup, with an empty list, through a proxy that adds fields",
        &[
            "host: gate.example:9000",
            "upgrade: websocket",
            "connection: upgrade",
            "sec-websocket-key: KEY",
            "sec-websocket-version: 13",
            "sec-websocket-protocol:",
            "sec-websocket-extensions: permessage-deflate,",
            "x-forwarded-for: 192.0.2.1, ::1",
            "forwarded: for=\"[2001:db8::1]\";proto=https",
            "via: 1.1 proxy",
            "x-empty:",
        ],
        None,
    ),
];

#[test]
fn the_requests_of_clients_that_no_test_runs_are_upgraded() {
    let origins = vec![AllowedOrigin::read("https://game.example").unwrap()];
    let rules = HandshakeRules { origins, ..rules() };
    for (client, lines, subprotocol) in CLIENTS {
        let lines = lines.join("\r\n").replace("KEY", KEY);
        let input = format!("GET /ws HTTP/1.1\r\n{lines}\r\n\r\n");
        let progress = upgrade_with(&rules, input.as_bytes());
        let Progress::Upgrade { response, encoding, .. } = progress else {
            panic!("{client}: {progress:?}")
        };
        let wanted =
            if subprotocol == Some(PROTOBUF) { Encoding::Protobuf } else { Encoding::Json };
        assert_eq!(encoding, wanted, "{client}");
        let response = String::from_utf8(response).unwrap();
        let named = response.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Protocol: "));
        assert_eq!(named, subprotocol, "{client}");
        assert!(!response.contains("Extensions"), "{client}: {response}");
    }
}
