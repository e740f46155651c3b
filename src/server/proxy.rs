//! Reverse proxies whose word is taken: on who asks, and for which name. Anybody else could write anything.
//!
//! Each proxy appends the address of its peer to `X-Forwarded-For`, so the list is read from its end: who is trusted has written what
//! stands before it. Of several lines of that field only the last is known (`Request::x_forwarded_for`). A proxy that adds a line instead
//! of going on with the one that is there (as `option forwardfor` of HAProxy does) hides what the proxies before it have said: then the
//! first of them is taken for the client. Nobody can be taken for somebody else that way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::config::ProxyNetwork;

/// Proxies that are trusted: those on this machine, and those that were named.
#[derive(Clone, Debug)]
pub struct TrustedProxies(Arc<[ProxyNetwork]>);

impl TrustedProxies {
    /// These, beside those on this machine.
    pub fn new(named: Arc<[ProxyNetwork]>) -> Self {
        Self(named)
    }

    /// Whether what this peer says of others is believed. It has no address on a unix socket.
    pub fn is_trusted(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|address| {
            address.to_canonical().is_loopback() || self.0.iter().any(|network| network.contains(address))
        })
    }

    /// Who really asks: the last of those in `forwarded_for` who is not trusted, or the first whose word is trusted if what it says is no
    /// address. `None` when nobody knows.
    pub fn client_address(&self, peer: Option<IpAddr>, forwarded_for: Option<&[u8]>) -> Option<IpAddr> {
        let mut client = peer;
        let mut said = forwarded_for.into_iter().flat_map(|list| list.rsplit(|&byte| byte == b','));
        while self.is_trusted(client) {
            let Some(address) = said.next().and_then(address) else { break };
            client = Some(address);
        }
        client
    }
}

/// An address, which some proxies write with a port.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    bare.parse::<IpAddr>().or_else(|_| with_port()).ok().map(|address| address.to_canonical())
}

/// The client is found by a naive search as well, and an address however it is written.
#[cfg(any(test, fuzzing))]
pub fn fuzz_proxy(data: &[u8]) {
    let said: Vec<_> = data.rsplit(|&byte| byte == b',').map_while(address).collect();
    for found in &said {
        for text in [found.to_string(), format!(" [{found}]\t"), SocketAddr::new(*found, 80).to_string()] {
            assert_eq!(address(text.as_bytes()), Some(*found), "{text}");
        }
    }
    for named in [&[][..], &["10.0.0.0/8", "fd00::/8"], &["0.0.0.0/0", "::/0"]] {
        let proxies = TrustedProxies::new(named.iter().filter_map(|text| text.parse().ok()).collect());
        for peer in ["", "127.0.0.1", "::1", "10.0.0.1", "fd00::1", "192.0.2.1"] {
            let peer = peer.parse().ok();
            let stranger = said.iter().copied().find(|&address| !proxies.is_trusted(Some(address)));
            let behind = stranger.or(said.last().copied()).or(peer);
            let expected = if proxies.is_trusted(peer) { behind } else { peer };
            assert_eq!(proxies.client_address(peer, Some(data)), expected, "{peer:?} {named:?} {said:?}");
            assert_eq!(proxies.client_address(peer, None), peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies(named: &[&str]) -> TrustedProxies {
        TrustedProxies::new(named.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn address_of(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn a_proxy_on_this_machine_is_believed_and_nobody_else() {
        let proxies = proxies(&[]);
        for (peer, forwarded, expected) in [
            ("192.0.2.1", None, "192.0.2.1"),
            ("192.0.2.1", Some("192.0.2.7"), "192.0.2.1"),
            ("127.0.0.1", None, "127.0.0.1"),
            ("127.0.0.1", Some("192.0.2.7"), "192.0.2.7"),
            ("::ffff:127.0.0.1", Some("192.0.2.7"), "192.0.2.7"),
            ("::1", Some("10.0.0.1, 192.0.2.7"), "192.0.2.7"),
            ("127.0.0.2", Some("192.0.2.7:4711"), "192.0.2.7"),
            ("127.0.0.1", Some("2001:db8::1"), "2001:db8::1"),
            ("127.0.0.1", Some("[2001:db8::1]"), "2001:db8::1"),
            ("127.0.0.1", Some("[2001:db8::1]:80"), "2001:db8::1"),
            ("127.0.0.1", Some("::ffff:192.0.2.7"), "192.0.2.7"),
            ("127.0.0.1", Some("192.0.2.7, unknown"), "127.0.0.1"),
            ("127.0.0.1", Some("192.0.2.7, "), "127.0.0.1"),
            ("127.0.0.1", Some(""), "127.0.0.1"),
        ] {
            let found = proxies.client_address(address_of(peer), forwarded.map(str::as_bytes));
            assert_eq!(found, address_of(expected), "{peer} {forwarded:?}");
        }
        assert_eq!(
            proxies.client_address(None, Some(b"192.0.2.7")),
            address_of("192.0.2.7"),
            "a unix socket"
        );
        assert_eq!(proxies.client_address(None, None), None);
        assert_eq!(proxies.client_address(None, Some(b"\xff")), None);
    }

    #[test]
    fn a_client_is_found_behind_a_row_of_trusted_proxies() {
        let proxies = proxies(&["10.0.0.0/8", "fd00::/8"]);
        for (peer, forwarded, expected) in [
            ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
            ("10.0.0.1", "192.0.2.7, 10.0.0.2", "192.0.2.7"),
            ("fd00::1", "192.0.2.7,127.0.0.1 , 10.0.0.2:80", "192.0.2.7"),
            // Whatever a client has written stands before its address.
            ("10.0.0.1", "198.51.100.1, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
            ("10.0.0.1", "10.9.9.9, 192.0.2.7", "192.0.2.7"),
            ("192.0.2.1", "192.0.2.7, 10.0.0.2", "192.0.2.1"),
            // All of them are trusted, or one says what is no address.
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1", "192.0.2.7, hidden, 10.0.0.2", "10.0.0.2"),
        ] {
            let found = proxies.client_address(address_of(peer), Some(forwarded.as_bytes()));
            assert_eq!(found, address_of(expected), "{peer} {forwarded}");
        }
        for (peer, is_trusted) in [
            (None, true),
            (Some("127.0.0.9"), true),
            (Some("::ffff:10.1.2.3"), true),
            (Some("fd12::1"), true),
            (Some("192.0.2.1"), false),
        ] {
            assert_eq!(proxies.is_trusted(peer.and_then(address_of)), is_trusted, "{peer:?}");
        }
    }

    proptest! {
        #[test]
        fn in_any_list_the_client_is_the_last_who_is_not_trusted(
            any: Vec<u8>,
            likely in "((10.0.0.[1-3]|::1|fd00::2|192.0.2.7|2001:db8::1|::ffff:10.0.0.9|x)(:80)?|\\[::1\\]:80)(, ?(10.0.0.1|192.0.2.7))?(,10.0.0.2){0,2}",
        ) {
            fuzz_proxy(&any);
            fuzz_proxy(likely.as_bytes());
        }
    }
}
