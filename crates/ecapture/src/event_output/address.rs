//! Where `--eventaddr` sends events.

use std::fmt;
use std::path::PathBuf;

use tungstenite::http::Uri;

/// A destination for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EventAddress {
    File(PathBuf),
    /// `host:port`
    Tcp(String),
    /// `ws://…` or `wss://…`
    WebSocket(Uri),
}

/// Reads what was typed: `tcp://host:port`, `ws://…`, `wss://…`, `file://` and a path, or a path.
pub(crate) fn parse(text: &str) -> Result<EventAddress, String> {
    if let Some(server) = text.strip_prefix("tcp://") {
        let port = server
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse()));
        return match port {
            Some((host, Ok(1..=u16::MAX))) if !host.is_empty() => {
                Ok(EventAddress::Tcp(server.into()))
            }
            _ => Err("give host and port, such as tcp://127.0.0.1:8090".into()),
        };
    }
    if text.starts_with("ws://") || text.starts_with("wss://") {
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("not a URL: {error}"))?;
        return match uri.host() {
            Some(host) if !host.is_empty() => Ok(EventAddress::WebSocket(uri)),
            _ => Err("the URL has no host: give one such as ws://127.0.0.1:8090/events".into()),
        };
    }
    let path = text.strip_prefix("file://").unwrap_or(text);
    if let Some((scheme, _)) = path.split_once("://") {
        return Err(format!(
            "{scheme}:// is not known: give a file, tcp://, ws:// or wss://"
        ));
    }
    if path.is_empty() || path == "-" {
        return Err("give a file, tcp://, ws:// or wss://; events go to stdout without it".into());
    }
    Ok(EventAddress::File(path.into()))
}

impl fmt::Display for EventAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Tcp(server) => write!(f, "tcp://{server}"),
            Self::WebSocket(uri) => write!(f, "{uri}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_they_look_like() {
        for (text, shown) in [
            ("events.json", "events.json"),
            ("file:///var/log/events", "/var/log/events"),
            ("tcp://127.0.0.1:8090", "tcp://127.0.0.1:8090"),
            ("tcp://[::1]:8090", "tcp://[::1]:8090"),
            ("ws://127.0.0.1:1/a", "ws://127.0.0.1:1/a"),
            ("wss://collector.example/", "wss://collector.example/"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "-",
            "file://",
            "tcp://",
            "tcp://host",
            "tcp://:1",
            "tcp://host:0",
            "tcp://host:65536",
            "tcp://host:x",
            "ws://",
            "ws:// a",
            "http://host/",
            "udp://host:1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
