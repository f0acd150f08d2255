//! Origins of web pages (RFC 6454): which ones an operator lists, and whether the `Origin` of a
//! request is one of them. Config reads the list once, the handshake compares without allocating.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Zones without public names, in which a wildcard may stand before a single label: RFC 6761,
/// RFC 6762, and ICANN's resolution on `.internal`.
const PRIVATE_ZONES: [&str; 4] = ["localhost", "test", "local", "internal"];
/// Longest host name and label (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// An item of the key `origins`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AllowedOrigin {
    /// `null`: what browsers send for pages without an origin, as those of files and of frames in a
    /// sandbox. Any site can make such a frame.
    Null,
    /// Pages of these scheme, hosts and ports.
    Pages {
        /// In lower case, without `://`.
        scheme: Box<str>,
        /// The hosts.
        host: AllowedHost,
        /// The ports.
        port: AllowedPort,
    },
}

/// The hosts of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AllowedHost {
    /// This one; empty for `file://` and for an app's scheme without hosts.
    Is(Box<str>),
    /// `*.` and this: the names with one or more labels in front of it, and not itself.
    Under(Box<str>),
}

/// The ports of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllowedPort {
    /// `:*`: every port, and none.
    Any,
    /// This port; `None` = none, which for http and https is the same as their default port.
    Is(Option<u16>),
}

impl AllowedOrigin {
    /// Reads an item. The error is a rule that `text` breaks and the way out, in one sentence that
    /// follows the value.
    pub fn read(text: &str) -> Result<Self, String> {
        if let Some(bad) = text.chars().find(|&c| c.is_whitespace() || ",;".contains(c)) {
            let rule = "must be one origin without spaces";
            return Err(format!("{rule}: remove {bad:?}; a second origin is another item"));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(
                "must be in ASCII, as browsers send it: write the name in its xn--… form".into()
            );
        }
        if text == "*" {
            return Err("must name the sites: with \"*\" any page could use its reader's \
                        connection; write them, e.g. \"https://*.example.org\""
                .into());
        }
        let lower = text.to_ascii_lowercase();
        if lower != text {
            return Err(format!("must be in lower case, as browsers send it: write {lower:?}"));
        }
        if text == "null" {
            return Ok(Self::Null);
        }
        let Some((scheme, authority)) = text.split_once("://") else {
            return Err(
                "must be scheme://host[:port], e.g. \"https://example.org\", or \"null\"".into()
            );
        };
        check_scheme(scheme)?;
        check_authority(scheme, authority)?;
        let (host, port) = split_port(authority);
        let port = read_port(scheme, host, port)?;
        let host = read_host(scheme, host)?;
        Ok(Self::Pages { scheme: scheme.into(), host, port })
    }

    /// Whether a page is one of these.
    fn allows(&self, page: &Page<'_>) -> bool {
        let (scheme, host, port) = match self {
            Self::Null => return false,
            Self::Pages { scheme, host, port } => (scheme, host, port),
        };
        page.scheme.eq_ignore_ascii_case(scheme)
            && match port {
                AllowedPort::Any => true,
                AllowedPort::Is(port) => page.port == *port,
            }
            && match host {
                AllowedHost::Is(host) => page.host.eq_ignore_ascii_case(host),
                AllowedHost::Under(zone) => is_under(page.host, zone),
            }
    }
}

/// As in the configuration.
impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Null => return f.write_str("null"),
            Self::Pages { scheme, host, port } => (scheme, host, port),
        };
        match host {
            AllowedHost::Is(host) => write!(f, "{scheme}://{host}")?,
            AllowedHost::Under(zone) => write!(f, "{scheme}://*.{zone}")?,
        }
        match port {
            AllowedPort::Any => f.write_str(":*"),
            AllowedPort::Is(None) => Ok(()),
            AllowedPort::Is(Some(port)) => write!(f, ":{port}"),
        }
    }
}

/// Longest origin that is kept of a connection: a scheme, the longest host name, a port.
const PAGE_BYTES_MAX: usize = 512;

/// The origin of the page that a connection is from, which matters until its user is known, where
/// tenants have origins of their own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageOrigin {
    text: Box<str>,
    /// Whether it may connect whatever the tenants list.
    is_common: bool,
}

impl PageOrigin {
    /// The page whose `Origin` is `text`. `is_common`: it may connect whatever the tenants list.
    pub fn new(text: &str, is_common: bool) -> Self {
        // No list has a longer one. A part of it is not kept: that could be one of a list.
        let text = if text.len() <= PAGE_BYTES_MAX { text } else { "" };
        Self { text: text.into(), is_common }
    }

    /// Whether users of a tenant with these origins may sign in from it. Without any of its own a
    /// tenant has the common ones, and not those that another one lists.
    pub fn may_sign_in(&self, origins: &[AllowedOrigin]) -> bool {
        match origins.is_empty() {
            true => self.is_common,
            false => is_allowed(origins, &self.text),
        }
    }

    /// Whether it may connect only because a tenant lists it.
    pub fn is_of_tenant(&self) -> bool {
        !self.is_common
    }

    /// The origin, for the log; empty if it is too long for a page of the web.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Whether `origin`, the value of a request's `Origin`, is one of `allowed`. Letters of both cases
/// are equal.
pub(crate) fn is_allowed(allowed: &[AllowedOrigin], origin: &str) -> bool {
    match Page::of(origin) {
        Some(page) => allowed.iter().any(|each| each.allows(&page)),
        None => origin == "null" && allowed.contains(&AllowedOrigin::Null),
    }
}

/// Whether `origin` is a page of http or https at `host`, the host and port of a request. The
/// scheme's default port is optional in both.
pub(crate) fn is_of_host(origin: &str, host: &str) -> bool {
    let Some(page) = Page::of(origin) else { return false };
    let (own_host, own_port) = split_port(host);
    is_web(page.scheme)
        && !page.host.is_empty()
        && page.host.eq_ignore_ascii_case(own_host)
        && port_of(page.scheme, own_port).is_some_and(|port| port == page.port)
}

/// Pages of the admin endpoint, where it listens on a loopback address: they may connect without
/// being listed, from the machine itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AdminPages {
    /// Where the endpoint listens, with its real port.
    address: SocketAddr,
    scheme: &'static str,
}

impl AdminPages {
    /// Pages of an endpoint at `address`, which speaks https with `tls`. `None`: other hosts reach
    /// it, so that its pages have names that must be listed.
    pub(crate) fn at(address: SocketAddr, tls: bool) -> Option<Self> {
        let scheme = if tls { "https" } else { "http" };
        address.ip().is_loopback().then_some(Self { address, scheme })
    }

    /// Whether `origin` is such a page, and connects by `host`, the host and port of a request, to
    /// the machine that it is on. No name but `localhost` counts in either, as its owner's name
    /// server can give any other one a loopback address.
    pub(crate) fn allows(&self, origin: &str, host: &str) -> bool {
        let Some(page) = Page::of(origin) else { return false };
        let port = Some(self.address.port());
        let is_here = |name: &str| match ip_of(name) {
            Some(ip) => ip == self.address.ip(),
            None => name.eq_ignore_ascii_case("localhost"),
        };
        page.scheme.eq_ignore_ascii_case(self.scheme)
            && page.port.or(default_port(self.scheme)) == port
            && is_here(page.host)
            && is_this_machine(split_port(host).0)
    }
}

/// Whether a host is `localhost`, or the text of a loopback address.
fn is_this_machine(host: &str) -> bool {
    match ip_of(host) {
        Some(ip) => ip.is_loopback(),
        None => host.eq_ignore_ascii_case("localhost"),
    }
}

/// The IP address that a host is, if its text is one; that of IPv6 stands in brackets.
fn ip_of(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(text) => text.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

/// An origin taken apart.
struct Page<'a> {
    scheme: &'a str,
    host: &'a str,
    /// `None` = none, or the scheme's default port.
    port: Option<u16>,
}

impl<'a> Page<'a> {
    fn of(origin: &'a str) -> Option<Self> {
        let (scheme, authority) = origin.split_once("://")?;
        let (host, port) = split_port(authority);
        Some(Self { scheme, host, port: port_of(scheme, port)? })
    }
}

/// Host and port of `host[:port]`; the colons of an IPv6 address stand in brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    }
}

/// The port that `text` names, without the scheme's default one. `None` = that is no port.
fn port_of(scheme: &str, text: Option<&str>) -> Option<Option<u16>> {
    // "h:" is h (RFC 3986 section 3.2.3).
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Some(None) };
    let is_number = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    let port: u16 = text.parse().ok().filter(|_| is_number)?;
    Some((default_port(scheme) != Some(port)).then_some(port))
}

fn default_port(scheme: &str) -> Option<u16> {
    if scheme.eq_ignore_ascii_case("http") {
        Some(80)
    } else if scheme.eq_ignore_ascii_case("https") {
        Some(443)
    } else {
        None
    }
}

/// Whether pages of the scheme come from hosts of the web.
fn is_web(scheme: &str) -> bool {
    default_port(scheme).is_some()
}

/// Whether `host` is one or more labels in front of `zone`.
fn is_under(host: &str, zone: &str) -> bool {
    let Some(cut) = host.len().checked_sub(zone.len()) else { return false };
    let Some((front, end)) = host.as_bytes().split_at_checked(cut) else { return false };
    let Some(labels) = front.strip_suffix(b".") else { return false };
    end.eq_ignore_ascii_case(zone.as_bytes())
        && labels.split(|&b| b == b'.').all(|label| {
            !label.is_empty() && label.iter().all(|&b| is_of_host_name(b.to_ascii_lowercase()))
        })
}

/// Whether names of hosts contain `byte`, in lower case.
fn is_of_host_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
}

fn check_scheme(scheme: &str) -> Result<(), String> {
    if scheme.contains('*') {
        return Err("must name the scheme: write an item for http:// and one for https://".into());
    }
    if let "ws" | "wss" = scheme {
        let page = if scheme == "ws" { "http" } else { "https" };
        return Err(format!(
            "must be the origin of the page, not of the WebSocket: write {page}://…"
        ));
    }
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    match is_scheme {
        true => Ok(()),
        false => Err("must begin with a scheme, e.g. \"https://example.org\"".into()),
    }
}

/// Refuses parts of a URL that no origin has.
fn check_authority(scheme: &str, authority: &str) -> Result<(), String> {
    let end = authority.find(['/', '?', '#', '\\']).unwrap_or(authority.len());
    let host = &authority[authority[..end].rfind('@').map_or(0, |at| at + 1)..end];
    if host.len() != authority.len() {
        let rule = "must be an origin, without user, path, query and '/' at its end";
        return Err(format!("{rule}: write \"{scheme}://{host}\""));
    }
    if scheme == "file" && !authority.is_empty() {
        return Err("must be \"file://\" or \"null\": browsers tell no host of a file".into());
    }
    if is_web(scheme) && authority.is_empty() {
        return Err(format!("must name a host: write \"{scheme}://example.org\""));
    }
    Ok(())
}

fn read_port(scheme: &str, host: &str, port: Option<&str>) -> Result<AllowedPort, String> {
    match port {
        None => Ok(AllowedPort::Is(None)),
        Some("*") => Ok(AllowedPort::Any),
        Some(text) => match port_of(scheme, Some(text)).filter(|_| !text.is_empty()) {
            Some(port) => Ok(AllowedPort::Is(port)),
            None => Err(format!(
                "must have a port from 1 to 65535 without leading zeros, or \":*\" for any, behind \
                 the ':': write e.g. \"{scheme}://{host}:8443\", or \"{scheme}://{host}\""
            )),
        },
    }
}

fn read_host(scheme: &str, host: &str) -> Result<AllowedHost, String> {
    let zone = host.strip_prefix("*.");
    let name = zone.unwrap_or(host);
    if name.contains('*') {
        let rule = "a '*' must stand for whole labels at the beginning of a host, or for a port";
        return Err(format!("{rule}: write e.g. \"{scheme}://*.example.org\", or list each host"));
    }
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && zone.is_none()
    {
        return read_ipv6(scheme, address);
    }
    // Apps have hosts as "." and "", which are no names.
    let is_app_host = !is_web(scheme) && zone.is_none() && ["", ".", "-"].contains(&name);
    if !is_app_host {
        check_name(name)?;
    }
    if zone.is_some() && !name.contains('.') && !PRIVATE_ZONES.contains(&name) {
        return Err(format!(
            "must name two labels or more behind '*.', else every site of a zone is allowed: write \
             e.g. \"{scheme}://*.example.{name}\""
        ));
    }
    // Browsers read such a host as an IPv4 address, and send that in its full form.
    let last = name.strip_suffix('.').unwrap_or(name).rsplit('.').next().unwrap_or_default();
    let hexadecimal = |rest: &str| rest.bytes().all(|b| b.is_ascii_hexdigit());
    let ends_in_number = (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
        || last.strip_prefix("0x").is_some_and(hexadecimal);
    if is_web(scheme) && ends_in_number && (zone.is_some() || name.parse::<Ipv4Addr>().is_err()) {
        return Err("must have a host name, or a whole IPv4 address as 192.0.2.1, without '*.': \
                    write that"
            .into());
    }
    Ok(match zone {
        Some(zone) => AllowedHost::Under(zone.into()),
        None => AllowedHost::Is(host.into()),
    })
}

/// An IPv6 address in the form in which browsers send it (the URL standard's host serializer).
fn read_ipv6(scheme: &str, text: &str) -> Result<AllowedHost, String> {
    let Ok(address) = text.parse::<Ipv6Addr>() else {
        return Err("must have an IPv6 address between '[' and ']', e.g. \"http://[::1]\"".into());
    };
    let sent = match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => format!("[::ffff:{high:x}:{low:x}]"),
        _ => format!("[{address}]"),
    };
    if sent == format!("[{text}]") {
        Ok(AllowedHost::Is(sent.into()))
    } else {
        Err(format!("must have the address as browsers send it: write \"{scheme}://{sent}\""))
    }
}

/// Checks a name of labels. A '.' at its end makes another host of it for browsers.
fn check_name(name: &str) -> Result<(), String> {
    if let Some(bad) = name.chars().find(|&c| c != '.' && !is_of_host_name(c as u8)) {
        return Err(format!(
            "must have a host of letters, digits, '-', '_' and '.': remove {bad:?}"
        ));
    }
    let labels = name.strip_suffix('.').unwrap_or(name).split('.');
    let sizes_are_right = labels.into_iter().all(|l| (1..=LABEL_BYTES_MAX).contains(&l.len()));
    if !sizes_are_right || name.len() > HOST_BYTES_MAX {
        return Err(format!(
            "must have a host of at most {HOST_BYTES_MAX} characters, each label of it 1 to \
             {LABEL_BYTES_MAX}: write e.g. \"https://example.org\""
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
