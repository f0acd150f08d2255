//! Mistakes that people make in configurations: each is refused, or told where it may be meant, in
//! one line with file, line, value, rule and way out.

use std::path::Path;

use crate::support::run;

const SERVICE: &str = "[[service]]\nname = \"logic\"\n\
    instances = [{ id = \"a\", address = \"127.0.0.1:50001\" }]\n";
const UNARY: &str = "[[service]]\nname = \"logic\"\nmode = \"unary\"\n\
    instances = [{ id = \"a\", address = \"127.0.0.1:50001\" }]\n";
const ROUTE: &str = "[[route]]\nrange = [1000, 1999]\nservice = \"logic\"\n";
/// The first line of every gateway.toml here, so that a mistake is in the second.
const FIRST: &str = "demo.enabled = false\n";

/// A file by its name, with its text.
type File = (&'static str, Vec<u8>);

/// What becomes of a configuration with a mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Nothing starts: exit code 64.
    Refused,
    /// A warning; exit code 0.
    Told,
}
use Verdict::{Refused, Told};

/// Checks files; the line about the mistake begins with `start` and contains `parts`.
#[track_caller]
fn check(files: &[File], verdict: Verdict, start: &str, parts: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).expect("our directory");
    }
    let at = dir.path().to_str().expect("UTF-8");
    let finished = run(&["check", "--config", at], |_| ());
    let said = finished.stdout.replace(&format!("{at}/"), "");
    let code = if verdict == Refused { 64 } else { 0 };
    assert_eq!(finished.code, Some(code), "{start}: {said}");
    let start = if verdict == Told { format!("warning: {start}") } else { start.to_owned() };
    let is_it = |line: &&str| line.starts_with(&start) && parts.iter().all(|p| line.contains(p));
    assert!(said.lines().any(|line| is_it(&line)), "{start} … {parts:?} in\n{said}");
    if verdict == Refused {
        assert!(said.ends_with("\n1 problem\n"), "no other line for one mistake:\n{said}");
    }
}

fn gateway(lines: &str, tables: &[&str]) -> Vec<File> {
    vec![("gateway.toml", format!("{FIRST}{lines}\n{}", tables.concat()).into_bytes())]
}

/// A mistake in the second line of a gateway.toml that is right otherwise.
#[track_caller]
fn key(line: &str, parts: &[&str]) {
    let key = line.split(" =").next().expect("a key");
    check(&gateway(line, &[SERVICE, ROUTE]), Refused, &format!("gateway.toml:2: {key} = "), parts);
}

/// A mistake in the only line of default.toml.
#[track_caller]
fn shard(line: &str, parts: &[&str]) {
    let files = with("default.toml", line);
    let key = line.split(" =").next().expect("a key");
    check(&files, Refused, &format!("default.toml:1: {key} = "), parts);
}

/// A right configuration with another file.
fn with(name: &'static str, text: &str) -> Vec<File> {
    let mut files = gateway("", &[SERVICE, ROUTE]);
    files.push((name, text.as_bytes().to_vec()));
    files
}

/// A mistake in the tables of gateway.toml.
#[track_caller]
fn tables(tables: &[&str], start: &str, parts: &[&str]) {
    check(&gateway("", tables), Refused, start, parts);
}

#[test]
fn names_of_keys_and_sections() {
    key("listn = \"127.0.0.1:9000\"", &["did you mean listen?"]);
    key("admn.listen = \"127.0.0.1:8000\"", &["did you mean admin.listen?"]);
    key("queue.items_max = 5000", &["it belongs in default.toml"]);
    shard("qeue.items_max = 5000", &["did you mean queue.items_max?"]);
    shard("conn.heartbeat_s = 30", &["did you mean conn.heartbeat_ms?"]);
    shard("conn.heartbeat = 30", &["did you mean conn.heartbeat_ms?"]);
    shard("listen = \"127.0.0.1:1\"", &["it belongs in gateway.toml"]);
    let own = with("0.toml", "listen = \"127.0.0.1:1\"");
    check(&own, Refused, "0.toml:1: listen = ", &["it belongs in gateway.toml"]);
    let one = SERVICE.replace("[[service]]", "[service]").replace("instances", "#");
    check(
        &gateway("", &[&one]),
        Refused,
        "gateway.toml:4: service.name = \"logic\": ",
        &["write [[service]], with two brackets"],
    );
    let below = format!("{ROUTE}listen = \"127.0.0.1:9000\"\n");
    tables(
        &[SERVICE, &below],
        "gateway.toml:9: route[0].listen = ",
        &["above the first [section]"],
    );
}

#[test]
fn types_and_units() {
    key("log.json = \"true\"", &["must be true or false; write it without quotes"]);
    key("log.json = 1", &["1 is true, and 0 is false"]);
    key("listen = 9000", &["must be a string, in quotes", "an IP address and a port"]);
    key("path = 2024-01-01", &["must be a string, in quotes", "'/'"]);
    shard("conn.heartbeat_ms = \"8080\"", &["write 8080, without quotes"]);
    shard("conn.heartbeat_ms = \"30s\"", &["write 30000, without quotes: the number is in ms"]);
    shard("conn.message_bytes_max = \"64K\"", &["write 65536, without quotes"]);
    shard("conn.heartbeat_ms = \"soon\"", &["write a number, without quotes and unit"]);
    shard("conn.heartbeat_ms = -1", &["from 100 to 3600000"]);
    shard("conn.heartbeat_ms = 1.5", &["write it without point and exponent"]);
    shard("conn.heartbeat_ms = 1e9", &["write it without point and exponent"]);
    shard("conn.connections_max = 99999999999999999999", &["from 1 to 16777216, or \"auto\""]);
    shard("conn.heartbeat_ms = true", &["write a number"]);
    key("gateway.ids = []", &["must be a list of 2 numbers"]);
    key("auth.mode = \"JWT\"", &["must be one of \"off\", \"jwt\""]);
    key("log.filter = \"inof\"", &["did you mean info?"]);
}

#[test]
fn addresses_ports_and_paths() {
    for wrong in ["127.0.0.1:70000", ":9000", "*:9000", "localhost:9000", "127.0.0.1", "${LISTEN}"]
    {
        let rule = ["an IP address and a port", "host names are not looked up"];
        key(&format!("listen = \"{wrong}\""), &rule);
    }
    key("listen = \"ws://127.0.0.1:9000\"", &["an IP address and a port"]);
    key("listen = \"127.0.0.1:8000\"", &["admin.listen 127.0.0.1:8000 are the same port"]);
    key("admin.listen = \"0.0.0.0:8000\"", &["needs admin.tls_cert", "or listen on 127.0.0.1"]);
    key("path = \"ws\"", &["must be '/'"]);
    key("path = \"/ws?x=1\"", &["without '?'"]);
    for wrong in ["127.0.0.1:0", "logic.local:50001", "http://127.0.0.1:50001"] {
        let service = SERVICE.replace("127.0.0.1:50001", wrong);
        let start = "gateway.toml:5: service[0].instances[0].address = ";
        tables(&[&service, ROUTE], start, &["above 0", "a host name goes into dns"]);
    }
    let own = SERVICE.replace("50001", "9000");
    let start = "gateway.toml:5: service[0].instances[0].address = \"127.0.0.1:9000\": ";
    tables(&[&own, ROUTE], start, &["is listen of this gateway itself"]);
    // A gateway that listens everywhere is reached over loopback; other addresses may be others'.
    let everywhere = "listen = \"0.0.0.0:9000\"\n";
    let start = "gateway.toml:6: service[0].instances[0].address = \"127.0.0.1:9000\": ";
    tables(&[everywhere, &own, ROUTE], start, &["is listen of this gateway itself"]);
    let dir = tempfile::tempdir().expect("a directory");
    let elsewhere = SERVICE.replace("127.0.0.1:50001", "10.1.2.3:9000");
    let text = format!("{everywhere}{elsewhere}{ROUTE}");
    std::fs::write(dir.path().join("gateway.toml"), text).expect("our directory");
    let at = dir.path().to_str().expect("UTF-8");
    let finished = run(&["check", "--config", at], |_| ());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    key("etcd.endpoints = [\"127.0.0.1:2379\"]", &["must be http://host:port"]);
}

#[test]
fn origins_tokens_and_ids() {
    for (wrong, way_out) in [
        ("*", "must name the sites"),
        ("https://a.*.example.org", "write e.g. \\\"https://*.example.org\\\""),
        ("https://example.org/app", "write \\\"https://example.org\\\""),
        ("example.org", "must be scheme://host[:port]"),
        ("wss://example.org", "the origin of the page"),
    ] {
        key(&format!("origins = [\"{wrong}\"]"), &[&way_out.replace('\\', "")]);
    }
    for wrong in ["0123456789 abcdef", "0123456789abcdef\\n", "secret"] {
        key(&format!("admin.token = \"{wrong}\""), &["<redacted>", "from: openssl rand -hex 16"]);
    }
    let start = "gateway.toml:5: service[0].instances[0].id = \"a.*\": ";
    tables(&[&SERVICE.replace("\"a\"", "\"a.*\""), ROUTE], start, &["letters, digits"]);
    key("node = \"$HOSTNAME\"", &["letters, digits"]);
}

#[test]
fn services_and_routes() {
    let more = |field: &str| SERVICE.replace(" }]", &format!(" }}, {{ {field} }}]"));
    let at = "gateway.toml:5: service[0].instances[1].";
    let id = more("id = \"a\", address = \"127.0.0.1:50002\"");
    tables(&[&id, ROUTE], &format!("{at}id = \"a\": "), &["ids are unique"]);
    let address = more("id = \"b\", address = \"127.0.0.1:50001\"");
    tables(&[&address, ROUTE], &format!("{at}address = "), &["raise its weight"]);
    let twice = SERVICE.replace("\"a\"", "\"b\"").replace("50001", "50002");
    let start = "gateway.toml:7: service[1].name = \"logic\": ";
    tables(&[SERVICE, &twice, ROUTE], start, &["rename one"]);
    let none = "[[service]]\nname = \"logic\"\ninstances = []\n";
    let start = "gateway.toml:5: service[0].instances = []: ";
    tables(&[none, ROUTE], start, &["is empty; list at least one"]);
    let range = |range: &str, parts: &[&str]| {
        let route = ROUTE.replace("[1000, 1999]", range);
        let start = format!("gateway.toml:7: route[0].range = {range}: ");
        tables(&[SERVICE, &route], &start, parts);
    };
    range("[1999, 1000]", &["the first id must not be above the last"]);
    range("\"1000-1999\"", &["must be a list of 2 numbers"]);
    range("[1000]", &["must be a list of 2 numbers"]);
    range("[9000, 9100]", &["overlaps the gateway's own ids (9000-9999)", "change the range"]);
    let over = ROUTE.replace("1000, 1999", "1500, 2500");
    let start = "gateway.toml:10: route[1].range = [1500, 2500]: ";
    tables(&[SERVICE, ROUTE, &over], start, &["overlaps route[0] (1000-1999)"]);
    let start = "gateway.toml:8: route[0].service = \"logik\": ";
    tables(&[SERVICE, &ROUTE.replace("logic", "logik")], start, &["did you mean \"logic\"?"]);
    let with = |line: &str| format!("{ROUTE}{line}\n");
    let start = "gateway.toml:9: route[0].method = \"/a.B/C\": ";
    tables(&[SERVICE, &with("method = \"/a.B/C\"")], start, &["remove it or set that mode"]);
    let bytes = with("payload = \"bytes\"");
    tables(&[UNARY, &bytes], "gateway.toml:7: route[0].method: ", &["name the gRPC method"]);
    let start = "gateway.toml:9: route[0].timeout_ms = 5: ";
    tables(&[SERVICE, &with("timeout_ms = 5")], start, &["must be above batch.window_ms 10"]);
    let start = "gateway.toml:9: route[0].priority = \"High\": ";
    tables(&[SERVICE, &with("priority = \"High\"")], start, &["must be one of \"critical\""]);
}

#[test]
fn texts_that_are_no_toml_show_the_key_and_not_the_value() {
    let no_toml = |text: &[u8], start: &str, parts: &[&str]| {
        check(&[("gateway.toml", text.to_vec())], Refused, start, parts);
    };
    let right = format!("{FIRST}{SERVICE}{ROUTE}");
    no_toml(b"log.json = yes\n", "gateway.toml:1: not TOML: \"log.json\": ", &["true or false"]);
    no_toml(b"listen = 127.0.0.1:9000\n", "gateway.toml:1: not TOML: \"listen\": ", &["quotes"]);
    no_toml(
        b"path = \"/a\"\npath = \"/b\"\n",
        "gateway.toml:2: not TOML: \"path\": ",
        &["remove one"],
    );
    no_toml(b"// a comment\n", "gateway.toml:1: not TOML: ", &["a comment begins with #"]);
    no_toml(
        b"listen: \"127.0.0.1:9000\"\n",
        "gateway.toml:1: not TOML: \"listen\"",
        &["key = value"],
    );
    let secret = "admin.token = very-secret-value\n";
    no_toml(secret.as_bytes(), "gateway.toml:1: not TOML: \"admin.token\": ", &["quotes"]);
    let cr = right.replace('\n', "\r");
    no_toml(cr.as_bytes(), "gateway.toml:1: not TOML: ", &["end lines with a line feed"]);
    let utf16: Vec<u8> = right.encode_utf16().flat_map(u16::to_le_bytes).collect();
    no_toml(&[&[0xff, 0xfe], &utf16[..]].concat(), "gateway.toml: ", &["save it as UTF-8"]);
    // What editors of other systems write is no mistake.
    for fine in
        [right.replace('\n', "\r\n"), format!("\u{feff}{right}"), right.replace(" = ", "\t=\t")]
    {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("gateway.toml"), fine).expect("our directory");
        let at = dir.path().to_str().expect("UTF-8");
        let finished = run(&["check", "--config", at], |_| ());
        assert_eq!(finished.code, Some(0), "{finished:?}");
    }
}

#[test]
fn files_that_nothing_reads_are_told() {
    for name in ["gateway.tml", "0.toml.bak", "gateway.toml~", "default.yaml", "gateway.conf"] {
        let start = format!("{name}: nothing reads this ");
        let way_out = if name.contains(".toml") { "copy: move it" } else { "file: rename it to" };
        check(&with(name, "x = 1"), Told, &start, &[way_out, "elsewhere"]);
    }
    check(&with("shard-0.toml", ""), Told, "shard-0.toml: nothing reads this file", &["rename"]);
    let mut files = with("9.toml", "");
    files[0].1.splice(0..0, *b"shards.count = 2\n");
    check(&files, Told, "9.toml: there are only 2 shards", &["set shards.count, or remove"]);
    let text = format!("{FIRST}{SERVICE}{ROUTE}").into_bytes();
    let start = "gateway.toml: there is no such file";
    check(&[("Gateway.toml", text)], Refused, start, &["rename it: mv "]);
    // A key's or an editor's own file is nobody's mistake.
    for name in ["gateway.pem", ".gateway.toml.swp"] {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in with(name, "x") {
            std::fs::write(dir.path().join(name), text).expect("our directory");
        }
        let finished = run(&["check", "--config", dir.path().to_str().expect("UTF-8")], |_| ());
        assert!(!finished.stdout.contains("nothing reads"), "{finished:?}");
    }
}

#[test]
fn files_that_keys_name_and_keys_that_need_each_other() {
    let jwks = |path: &str| format!("auth.jwks_file = \"{path}\"\nauth.mode = \"jwt\"");
    key(&jwks("/no/such/file"), &["cannot be opened", "name a file that is there"]);
    key(&jwks("/"), &["cannot be read", "name a file in it"]);
    let files = gateway("admin.token_file = \"/\"", &[SERVICE, ROUTE]);
    check(&files, Told, "admin token in /: is not a file", &["name one in admin.token_file"]);
    key("tls.listen = \"127.0.0.1:9443\"", &["add a [[tls_certificate]]"]);
    key("admin.tls_cert = \"/a\"", &["admin.tls_cert and admin.tls_key go together: set both"]);
    key("auth.mode = \"jwt\"", &["add an [[auth_key]]"]);
    let files = gateway("stop.spread_ms = 20000", &[SERVICE, ROUTE]);
    check(&files, Told, "gateway.toml:2: stop.spread_ms = 20000: ", &["raise that, or lower this"]);
    let none = SERVICE.replace("\"logic\"", "\"other\"").replace("\"a\"", "\"b\"");
    let files = gateway("", &[SERVICE, ROUTE, &none.replace("50001", "50002")]);
    check(&files, Told, "gateway.toml:10: service[1].name = \"other\": ", &["add one or remove"]);
}

#[test]
fn a_certificate_and_its_key_that_are_swapped_are_told() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("our directory");
        path
    };
    let chain = write("chain.pem", made.cert.pem());
    let key = write("key.pem", made.signing_key.serialize_pem());
    let table = |chain: &Path, key: &Path| {
        let (chain, key) = (chain.display(), key.display());
        format!("[[tls_certificate]]\nchain_file = \"{chain}\"\nkey_file = \"{key}\"\n")
    };
    let files = gateway("tls.listen = \"127.0.0.1:9443\"", &[SERVICE, ROUTE, &table(&key, &chain)]);
    let at = tempfile::tempdir().expect("a directory");
    for (name, body) in files {
        std::fs::write(at.path().join(name), body).expect("our directory");
    }
    let said = run(&["check", "--config", at.path().to_str().expect("UTF-8")], |_| ()).stdout;
    for part in
        ["tls_certificate[0].chain_file = ", "but a private key: are the two files swapped?"]
    {
        assert!(said.contains(part), "{part} in\n{said}");
    }
}

#[test]
fn cores_that_are_not_there_or_taken_twice_are_told() {
    let mut files = gateway("shards.count = 1", &[SERVICE, ROUTE]);
    files.push(("0.toml", b"shard.core = 900\n".to_vec()));
    let start = "on this machine shard 0 wants core 900";
    check(&files, Told, start, &["change core in shards/0.toml"]);
}
