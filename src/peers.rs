//! Peers that speak for others: the networks that an operator lists, and what is believed of them.
//! Config reads the lists once; they are asked once a connection, and once a hop of its request.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Networks of peers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peers(Vec<IpNet>);

impl Peers {
    /// The peers of these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether `ip` is one of them. A peer that speaks IPv4 to a socket for both versions has a
    /// mapped address (`::ffff:192.0.2.1`), and is the same peer.
    pub fn has(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(&ip))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks that together are all of IPv4 or of IPv6, if there are such: `0.0.0.0/0`.
    pub fn everybody(&self) -> Option<IpNet> {
        let all = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let together = IpNet::aggregate(&self.0);
        all.into_iter().find(|network| together.contains(network))
    }
}

/// HTTP proxies that name the client in a header, and the header that they write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Forwarded {
    /// The proxies.
    pub from: Peers,
    /// The header. A proxy that writes one of them passes the other one on as the client sent it,
    /// so no more than one can be believed.
    pub header: ForwardedHeader,
}

/// A header in which proxies name the client, each behind those that were before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: addresses.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239): lists of parameters, of which `for` is the address.
    Forwarded,
}

impl ForwardedHeader {
    /// Name of the field, as the configuration writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(networks: &[&str]) -> Peers {
        Peers::new(networks.iter().map(|text| text.parse().expect("a network")).collect())
    }

    #[test]
    fn a_peer_is_in_its_network_also_by_its_mapped_address() {
        let peers = peers(&["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
        for (ip, has) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("192.0.2.7", true),
            ("fd12::1", true),
            ("11.0.0.1", false),
            ("::ffff:192.0.2.8", false),
            ("fe00::1", false),
            ("::1", false),
        ] {
            assert_eq!(peers.has(ip.parse().expect("an address")), has, "{ip}");
        }
        assert!(!Peers::default().has("10.0.0.1".parse().expect("an address")));
    }

    #[test]
    fn everybody_is_found_however_it_is_written() {
        for (networks, everybody) in [
            (&["0.0.0.0/0"][..], Some("0.0.0.0/0")),
            (&["::/0", "10.0.0.0/8"], Some("::/0")),
            (&["128.0.0.0/1", "10.0.0.0/8", "0.0.0.0/1"], Some("0.0.0.0/0")),
            (&["0.0.0.0/1", "8000::/1"], None),
            (&[], None),
        ] {
            let found = peers(networks).everybody().map(|network| network.to_string());
            assert_eq!(found.as_deref(), everybody, "{networks:?}");
        }
    }
}
