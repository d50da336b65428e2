//! A server in a process of its own, which can be killed.

use std::env;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use loopmount::target::kernel_nbd::{NbdDevice, NbdOptions};
use nbdserve::server::{Options, Server};

use crate::odd::{Odd, STUCK};
use crate::setup::options;

/// In the environment of a process that serves [`Odd`] on its standard input.
pub(crate) const SERVE: &str = "LOOPMOUNT_TEST_SERVE";

/// Serves, when this process was started to: the first thing that a test with a server process
/// calls.
pub(crate) fn is_server_process() -> bool {
    if env::var_os(SERVE).is_none() {
        return false;
    }
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("take over the socket");
    let (volume, _, _) = Odd::volume();
    let server = Server::new(volume, &Options::default());
    let _ = server.serve(socket.into());
    true
}

/// A process that serves [`Odd`]; killed when dropped.
pub(crate) struct ServerProcess(Child);

impl ServerProcess {
    /// Starts the test `test` of this binary as a server.
    pub(crate) fn start(test: &str) -> (Self, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().expect("make a socket pair");
        let child = Command::new(env::current_exe().expect("find this test binary"))
            .args(["--exact", test, "--nocapture"])
            .env(SERVE, "1")
            .stdin(Stdio::from(OwnedFd::from(ours)))
            .stdout(Stdio::null())
            .spawn()
            .expect("start a server process");
        (Self(child), theirs.into())
    }

    pub(crate) fn kill(&mut self) {
        // It can only be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A read of the device that hangs, on a thread of its own.
pub(crate) fn hanging_read(device: &NbdDevice) -> JoinHandle<std::io::Result<()>> {
    let node = File::open(&device.path).expect("open the node");
    std::thread::spawn(move || node.read_exact_at(&mut [0; 4096], STUCK))
}

pub(crate) fn odd_options(id: &str, timeout: Duration) -> NbdOptions<'_> {
    let (volume, _, _) = Odd::volume();
    NbdOptions {
        timeout,
        ..options(id, &volume, false)
    }
}
