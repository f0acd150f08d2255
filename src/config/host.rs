//! The host's name, as a name of this process.

use std::sync::OnceLock;

use super::words::is_name;

/// Name of a process on a host without one.
const FALLBACK: &str = "node-1";
/// Longest name of a node.
const NAME_BYTES_MAX: usize = 64;

/// The name of a process that the configuration gives none: the host's. It is read once, so that a
/// host that is renamed does not rename the process, too.
pub fn node() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| of_host(&rustix::system::uname().nodename().to_string_lossy()))
}

/// The name of a node on the host `name`.
fn of_host(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.chars().take(NAME_BYTES_MAX).map(fit).collect();
    // Every host without a name is called so.
    let is_none = ["", "localhost", "-none-"].contains(&name.as_str());
    if is_none || !is_name(&name) { FALLBACK.into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_name_becomes_a_name_of_a_node() {
        for (host, node) in [
            ("gateway-7d9f.example.org", "gateway-7d9f.example.org"),
            ("my host\u{fc}", "my-host-"),
            ("", "node-1"),
            ("localhost", "node-1"),
            ("(none)", "node-1"),
        ] {
            assert_eq!(of_host(host), node);
        }
        assert_eq!(of_host(&"a".repeat(200)).len(), 64);
        assert!(is_name(node()), "{}", node());
    }
}
