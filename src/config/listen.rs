//! The keys of the clients' side: `listen`, `[tls]`, `[[tls_certificate]]`, `[proxy]`,
//! `[forwarded]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::reader::Reader;
use super::rule::TextRule;
use super::settings::*;
use super::words::{ADDRESS_RULE, is_address};
use crate::peers::{Forwarded, ForwardedHeader, Peers};

/// Largest number of certificates. All are compared with a client's name, some 2 us each.
const CERTIFICATES_MAX: usize = 32;
/// Largest number of networks in a list. All are compared with each accepted connection.
const NETWORKS_MAX: usize = 64;

const NETWORK_RULE: TextRule =
    TextRule::new("an IP address, or a network of them", ", e.g. \"10.0.0.0/8\"");

/// An address by which this machine reaches a listener at `address`: that of all interfaces is
/// none.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Reads `listen`: where clients connect without TLS.
pub fn plain(r: &mut Reader, default: Option<SocketAddr>) -> Option<SocketAddr> {
    listen(r, "listen", default)
}

/// Reads an address; empty = none.
pub fn listen(
    r: &mut Reader,
    key: &'static str,
    default: Option<SocketAddr>,
) -> Option<SocketAddr> {
    let shown = default.map_or(String::new(), |address| address.to_string());
    r.text(key, &shown, is_address, ADDRESS_RULE.or_empty()).parse().ok()
}

/// Reads `[tls]` and `[[tls_certificate]]`.
pub fn tls(r: &mut Reader) -> TlsSettings {
    let d = TlsSettings::default();
    let versions = [("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];
    let asked = [
        ("off", ClientCertificates::Off),
        ("optional", ClientCertificates::Optional),
        ("required", ClientCertificates::Required),
    ];
    let settings = TlsSettings {
        listen: listen(r, "tls.listen", d.listen),
        min_version: r.word("tls.min_version", d.min_version, &versions),
        client_certificates: r.word("tls.client_certificates", d.client_certificates, &asked),
        client_ca_file: r.file("tls.client_ca_file"),
        certificates: certificates(r),
    };
    // A list that was refused has its problem already.
    if settings.listen.is_some() && !r.is_set("tls_certificate") {
        let rule = "needs a certificate: add a [[tls_certificate]] with chain_file and key_file";
        r.problem("tls.listen", rule);
    }
    if settings.listen.is_none() && r.is_set("tls_certificate") {
        r.warning("tls.listen", "nobody is shown a [[tls_certificate]]; set it to use TLS");
    }
    match (settings.client_certificates, &settings.client_ca_file) {
        (ClientCertificates::Optional | ClientCertificates::Required, None) => {
            let rule = "needs tls.client_ca_file, with the certificates that sign the clients' \
                        ones";
            r.problem("tls.client_certificates", rule);
        }
        (ClientCertificates::Off, Some(_)) => {
            let rule = "no client is asked for a certificate with tls.client_certificates = \
                        \"off\"";
            r.warning("tls.client_ca_file", rule);
        }
        (ClientCertificates::Off, None)
        | (ClientCertificates::Optional | ClientCertificates::Required, Some(_)) => {}
    }
    settings
}

fn certificates(r: &mut Reader) -> Vec<TlsCertificate> {
    let (list, source) = r.list("tls_certificate", CERTIFICATES_MAX);
    if list.len() > CERTIFICATES_MAX {
        r.problem("tls_certificate", format!("at most {CERTIFICATES_MAX} of them"));
        return Vec::new();
    }
    let mut certificates = Vec::new();
    for (index, node) in list.into_iter().enumerate() {
        let prefix = format!("tls_certificate[{index}]");
        let Some(mut table) = Reader::of_table(prefix, node, &source, &mut r.report) else {
            continue;
        };
        let chain_file = table.required_file("chain_file");
        let key_file = table.required_file("key_file");
        let twice = |c: &TlsCertificate| Some(&c.chain_file) == chain_file.as_ref();
        if certificates.iter().any(twice) {
            table.problem("chain_file", "is the one of another [[tls_certificate]]; remove one");
        }
        table.unknown(&[], "");
        r.report.absorb(table.report);
        if let (Some(chain_file), Some(key_file)) = (chain_file, key_file) {
            certificates.push(TlsCertificate { chain_file, key_file });
        }
    }
    certificates
}

/// Reads the section `[proxy]`.
pub fn proxies(r: &mut Reader) -> Peers {
    peers(r, "proxy.from")
}

/// Reads the section `[forwarded]`.
pub fn forwarded(r: &mut Reader) -> Forwarded {
    let words = [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded];
    let words = words.map(|header| (header.name(), header));
    let settings = Forwarded {
        from: peers(r, "forwarded.from"),
        header: r.word("forwarded.header", ForwardedHeader::default(), &words),
    };
    if let Some(network) = settings.from.everybody() {
        let rule = format!(
            "must leave somebody out: with all of {network} every client is believed to be a \
             proxy, and none is found; list the proxies alone"
        );
        r.problem("forwarded.from", rule);
    }
    if settings.from.is_empty() && settings.header != ForwardedHeader::default() {
        let rule = "no header is read; set forwarded.from to the addresses of your proxies";
        r.warning("forwarded.header", rule);
    }
    settings
}

fn peers(r: &mut Reader, key: &'static str) -> Peers {
    let networks = r.texts_as(key, "[]", network, NETWORK_RULE).unwrap_or_default();
    if networks.len() > NETWORKS_MAX {
        r.problem(key, format!("at most {NETWORKS_MAX} of them"));
        return Peers::default();
    }
    Peers::new(networks)
}

/// Reads an address or a network. The error is a rule that `text` breaks and the way out. Bits
/// behind the prefix are refused as a slip (10.1.0.0/8 is more than it looks), and so is what no
/// peer can be: it would stand there and match nothing.
fn network(text: &str) -> Result<IpNet, String> {
    let read = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse());
    let network = read.map_err(|_| NETWORK_RULE.to_string())?;
    let whole = network.trunc();
    if whole != network {
        let one = IpNet::from(network.addr()).addr();
        return Err(format!(
            "must be a network without bits set behind its prefix: write \"{whole}\", or \
             \"{one}\" for the one address"
        ));
    }
    if let Some(as_ipv4) = unmapped(network) {
        return Err(format!(
            "must be in IPv4's own form, by which each such peer is known: write \"{as_ipv4}\""
        ));
    }
    if network.addr().is_unspecified() && network.prefix_len() == network.max_prefix_len() {
        return Err("must be an address that a peer can have, which this is not".into());
    }
    Ok(network)
}

/// The network of IPv4 that `network` is in mapped form (`::ffff:10.0.0.0/104`), if it is one.
fn unmapped(network: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(network) = network else { return None };
    let prefix = network.prefix_len().checked_sub(96)?;
    Ipv4Net::new(network.addr().to_ipv4_mapped()?, prefix).ok()
}

/// Checks the addresses against each other.
pub fn relations(r: &mut Reader, settings: &GatewaySettings) {
    let (plain, tls) = (settings.listen, settings.tls.listen);
    if plain.is_none() && tls.is_none() {
        r.problem("listen", "nobody could connect: set it, or tls.listen");
    }
    let all: Vec<_> = settings.own_addresses().collect();
    for (n, (key, address)) in all.iter().enumerate() {
        for (other, taken) in &all[..n] {
            r.relation(
                !collide(*address, *taken),
                [key, other],
                format!("{other} {taken} and {key} {address} are the same port; change one"),
            );
        }
    }
}

/// Whether the two addresses cannot both be bound. Port 0 is a new port each time.
pub fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (ip, other) = (a.ip().to_canonical(), b.ip().to_canonical());
    let same_ip = ip == other || ip.is_unspecified() || other.is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_ip
}

#[cfg(test)]
mod tests;
