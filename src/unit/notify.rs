//! Telling a service manager how far we are: the protocol of sd_notify(3), a datagram to the socket
//! that `NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The target can be used.
pub const READY: &str = "READY=1";
/// It is being taken down.
pub const STOPPING: &str = "STOPPING=1";

/// Sends `state` to the service manager, if there is one. Its failure changes nothing for the user,
/// so it is only logged.
pub fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!("cannot tell the service manager {state}: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => {
            let what = "NOTIFY_SOCKET is neither a path nor an abstract name";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("loopmount-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (receiver, word) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            send(&word, READY).unwrap();
            let mut bytes = [0; 64];
            let len = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], READY.as_bytes());
        }
        assert!(send(OsStr::new("vsock:2:1234"), READY).is_err());
    }
}
