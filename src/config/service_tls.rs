//! The table `tls` of a `[[service]]`: TLS towards its instances.

use rustls::pki_types::ServerName;

use super::LookupName;
use super::reader::Reader;
use super::rule::TextRule;
use super::settings::ServiceTlsSettings;

const NAME_RULE: TextRule =
    TextRule::new("a host name or an IP address", ", e.g. \"logic.internal\"");

/// Whether a certificate can be for `s`.
fn is_server_name(s: &str) -> bool {
    ServerName::try_from(s).is_ok()
}

/// Reads the table; `None` = there is none, so the service is spoken to without TLS. `looked_up` is
/// the value of the service's key `dns`.
pub fn read(r: &mut Reader, looked_up: Option<&LookupName>) -> Option<ServiceTlsSettings> {
    if !r.table("tls") {
        return None;
    }
    let ca_file = r.file("tls.ca_file");
    let name = r.text("tls.server_name", "", is_server_name, NAME_RULE.or_empty());
    let [cert_file, key_file] = ["tls.cert_file", "tls.key_file"].map(|key| r.file(key));
    let set = [cert_file.is_some(), key_file.is_some()];
    r.both_or_neither(["tls.cert_file", "tls.key_file"], set);
    let host = match looked_up {
        // No certificate has the dot at the end of an absolute name.
        Some(LookupName::Host { host, .. }) => Some(host.trim_end_matches('.')),
        Some(LookupName::Srv(_)) if name.is_empty() => {
            let rule = "is needed: the hosts of SRV records are not known here; write the name \
                        that the certificates of all of them have";
            r.problem("tls.server_name", rule);
            None
        }
        Some(LookupName::Srv(_)) | None => None,
    };
    let name = Some(name.as_str()).filter(|name| !name.is_empty()).or(host);
    if name.is_some_and(|name| !is_server_name(name)) {
        let rule = "is needed: no certificate can be for the host in dns";
        r.problem("tls.server_name", rule);
    }
    Some(ServiceTlsSettings { ca_file, server_name: name.map(Into::into), cert_file, key_file })
}

#[cfg(test)]
mod tests {
    use super::super::load::{Files, Overrides, from_files};
    use super::super::{Config, Problems};

    fn of(lines: &str) -> Result<Config, Problems> {
        let mut files = Files::embedded();
        files.gateway.text = format!(
            "[[service]]\nname = \"logic\"\n{lines}\n[[route]]\nrange = [1, 2]\n\
             service = \"logic\""
        );
        from_files(files, &[], &Overrides::default())
    }

    const INSTANCES: &str = "instances = [{ id = \"a\", address = \"10.0.0.1:50001\" }]";

    fn name(lines: &str) -> Option<String> {
        let config = of(lines).expect("right");
        config.service_tls["logic"].server_name.as_ref().map(ToString::to_string)
    }

    #[test]
    fn the_name_is_the_one_given_or_that_of_dns_or_each_address() {
        let given = "tls = { server_name = \"b.test\" }";
        assert_eq!(name(&format!("{INSTANCES}\n{given}")).as_deref(), Some("b.test"));
        assert_eq!(name(&format!("{INSTANCES}\ntls = {{}}")), None);
        assert_eq!(name("dns = \"a.test:1\"\ntls = {}").as_deref(), Some("a.test"));
        assert_eq!(name("dns = \"a.test.:1\"\ntls = {}").as_deref(), Some("a.test"));
        assert_eq!(name(&format!("dns = \"a.test:1\"\n{given}")).as_deref(), Some("b.test"));
        assert!(of(INSTANCES).expect("right").service_tls.is_empty());
    }

    #[test]
    fn a_table_that_is_wrong_is_told_in_one_line() {
        for (tls, expected) in [
            ("tls = true", "service[0].tls = true: must be a table"),
            ("tls = \"ca.pem\"", "service[0].tls = \"ca.pem\": must be a table"),
            ("tls = { ca = \"ca.pem\" }", "service[0].tls.ca = \"ca.pem\": unknown key"),
            ("tls = { cert_file = \"a.pem\" }", "tls.cert_file and tls.key_file go together"),
            ("tls = { key_file = \"a.key\" }", "tls.cert_file and tls.key_file go together"),
            ("tls = { server_name = \"a b\" }", "must be empty, or a host name or an IP address"),
            ("tls = { server_name = \"a:1\" }", "must be empty, or a host name or an IP address"),
            ("tls = { ca_file = 1 }", "service[0].tls.ca_file = 1: must be a string"),
        ] {
            let told = of(&format!("{INSTANCES}\n{tls}")).expect_err(tls).to_string();
            assert!(told.contains(expected) && told.lines().count() == 1, "{tls}: {told}");
        }
        let told = of("dns = \"a.1:1\"\ntls = {}").expect_err("no name").to_string();
        assert!(told.contains("tls.server_name: is needed"), "{told}");
        let told = of("dns = \"srv:_grpc._tcp.a\"\ntls = {}").expect_err("no name").to_string();
        assert!(told.contains("tls.server_name: is needed: the hosts of SRV"), "{told}");
        let given = "dns = \"srv:_grpc._tcp.a\"\ntls = { server_name = \"b.test\" }";
        assert_eq!(name(given).as_deref(), Some("b.test"));
    }
}
